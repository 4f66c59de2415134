"""Doors: the ways in for requests, with their filters and their routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router

if TYPE_CHECKING:
    from collections.abc import Sequence

    from betterproto2 import Message
    from envoy_data_plane.envoy.config.core.v3 import DataSource
    from envoy_data_plane.envoy.config.listener.v3 import FilterChain, Listener
    from envoy_data_plane.envoy.config.route.v3 import (
        Route,
        RouteConfiguration,
        VirtualHost,
        WeightedClusterClusterWeight,
    )
    from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: E501
        HttpConnectionManager,
        HttpFilter,
    )

    Level = RouteConfiguration | VirtualHost | Route | WeightedClusterClusterWeight

M = TypeVar("M")

# What the files of envoy/ call the check with the body, and so the metadata of authz.
CHECK = "envoy.filters.http.ext_authz"


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of HTTP requests; ``config`` is None where it could not be read."""

    message: HttpFilter
    config: Message | None

    @property
    def name(self) -> str:
        """Its name, by which routes change it."""
        return self.message.name

    @property
    def full_check(self) -> bool:
        """Whether it asks authz with the body: the one that every request needs."""
        return isinstance(self.config, ExtAuthz) and (
            self.config.with_request_body is not None or self.name == CHECK
        )


@dataclass(frozen=True, slots=True)
class Override:
    """What a route, or what it stands in, says otherwise for one filter."""

    level: Level
    config: Message | None
    disabled: bool


@dataclass(frozen=True, slots=True)
class Way:
    """A route with all that it stands in."""

    table: RouteConfiguration
    host: VirtualHost
    route: Route

    @property
    def levels(self) -> list[Level]:
        """All that may change a request on this way, outermost first."""
        return [self.table, self.host, self.route, *self.weighted]

    @property
    def weighted(self) -> Sequence[WeightedClusterClusterWeight]:
        """The clusters that share this route, if several do."""
        action = self.route.route
        shares = action.weighted_clusters if action else None
        return shares.clusters if shares else []

    @property
    def clusters(self) -> list[str]:
        """The names of the clusters that a request may be sent to."""
        action = self.route.route
        names = [action.cluster] if action and action.cluster else []
        return names + [share.name for share in self.weighted if share.name]


@dataclass(frozen=True, slots=True)
class Door:
    """One HTTP connection manager: a way in for requests."""

    listener: Listener
    chain: FilterChain | None
    manager: HttpConnectionManager
    filters: Sequence[Filter]
    routes: RouteConfiguration | None
    ways: Sequence[Way]

    @property
    def before_router(self) -> list[Filter]:
        """The filters that a request passes before it is sent on."""
        at = [isinstance(each.config, Router) for each in self.filters]
        return list(self.filters[: at.index(True)] if any(at) else self.filters)

    @property
    def full_checks(self) -> list[Filter]:
        """The filters that ask authz with the body."""
        return [each for each in self.before_router if each.full_check]

    def of(self, kind: type[M]) -> list[tuple[Filter, M]]:
        """Return the filters of a type with their configurations."""
        return [
            (each, each.config)
            for each in self.filters
            if isinstance(each.config, kind)
        ]


def ways_of(table: RouteConfiguration) -> list[Way]:
    """Return all routes of a table, in the order in which they are tried."""
    hosts = table.virtual_hosts
    return [Way(table, host, route) for host in hosts for route in host.routes]


def script_of(each: Filter) -> DataSource | None:
    """Return where the script of a Lua filter stands."""
    return each.config.default_source_code if isinstance(each.config, Lua) else None
