"""All files as the one configuration that Envoy runs, in the terms of the rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

from betterproto2 import Message
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import FilterConfig, RouteConfiguration
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import (
    ExtAuthz,
    ExtAuthzPerRoute,
)
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: E501
    HttpConnectionManager,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryResponse, Resource

from authz.envoy_check.doors import Door, Filter, Override, Way, ways_of
from authz.envoy_check.findings import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
    from envoy_data_plane.envoy.config.core.v3 import Address, ConfigSource
    from envoy_data_plane.envoy.config.listener.v3 import FilterChain
    from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import (
        CheckSettings,
    )
    from envoy_data_plane.google.protobuf import Any

    from authz.envoy_check.doors import Level
    from authz.envoy_check.findings import Problem
    from authz.envoy_check.reader import Reader


@dataclass(slots=True)
class Config:
    """What the files say together.

    ``gateways`` are the doors that lead to anything but a page of the admin interface.
    """

    reader: Reader
    files: list[str] = field(default_factory=list)
    roots: list[Message] = field(default_factory=list)
    bootstraps: list[Bootstrap] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    tables: list[RouteConfiguration] = field(default_factory=list)
    loads: list[ClusterLoadAssignment] = field(default_factory=list)
    secrets: dict[str, Secret] = field(default_factory=dict)
    again: list[tuple[Message, str]] = field(default_factory=list)
    unjudged: list[Message] = field(default_factory=list)
    _names: set[tuple[type, str]] = field(default_factory=set)
    doors: list[Door] = field(default_factory=list)
    gateways: list[Door] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def add(self, file: str, message: Message) -> None:
        """Take in what was read from one file."""
        self.files.append(file)
        self.roots.append(message)
        if isinstance(message, Bootstrap):
            self.bootstraps.append(message)
            if own := message.static_resources:
                for each in (*own.listeners, *own.clusters, *own.secrets):
                    self._add_resource(each)
        elif isinstance(message, DiscoveryResponse):
            for packed in message.resources:
                resource = self.reader.unpacked(packed)
                while isinstance(resource, Resource):  # which Envoy unwraps
                    resource = self.reader.unpacked(resource.resource)
                self._add_resource(resource)

    def connect(self) -> None:
        """Find what leads where, when all files are in."""
        self.doors = [door for each in self.listeners for door in self._doors(each)]
        admin = self.admin_clusters
        self.gateways = [door for door in self.doors if self.reached(door) - admin]

    @property
    def first(self) -> Place:
        """The beginning of the files: the place of what is in none."""
        return Place(self.files[0], 1)

    @property
    def leading(self) -> list[Door]:
        """The doors that pass requests on; others answer all by themselves."""
        return [door for door in self.doors if self.reached(door)]

    @property
    def admin_clusters(self) -> set[str]:
        """The clusters that are Envoy's own admin interface."""
        admins = {_where(each.admin.address) for each in self.bootstraps if each.admin}
        places = {
            name: {_where(address) for address in self.addresses(cluster)}
            for name, cluster in self.clusters.items()
        }
        return {name for name, there in places.items() if there and there <= admins}

    def reached(self, door: Door) -> set[str]:
        """Return the names of the clusters that a door's routes lead to."""
        names = {name for way in door.ways for name in way.clusters}
        # Where it leads is not written down: it may lead anywhere.
        return names if door.routes is not None else {""}

    def addresses(self, cluster: Cluster) -> list[Address | None]:
        """Return where the endpoints of a cluster are."""
        loads = [cluster.load_assignment] if cluster.load_assignment else []
        named = cluster.eds_cluster_config
        names = {cluster.name, named.service_name if named else cluster.name}
        loads += [each for each in self.loads if each.cluster_name in names]
        endpoints = [
            each.endpoint
            for load in loads
            for locality in load.endpoints
            for each in locality.lb_endpoints
        ]
        more = [one for each in endpoints if each for one in each.additional_addresses]
        return [each.address if each else None for each in (*endpoints, *more)]

    def ways(self) -> Iterator[tuple[Door, Way]]:
        """Return the routes of all doors."""
        for door in self.doors:
            for way in door.ways:
                yield door, way

    def checks(self) -> Iterator[tuple[Door, Filter, ExtAuthz]]:
        """Return every filter that asks authz about requests."""
        for door in self.doors:
            for each, settings in door.of(ExtAuthz):
                yield door, each, settings

    def check_settings(self) -> Iterator[tuple[Way, Filter, CheckSettings]]:
        """Return what routes say otherwise for a check."""
        for door, each, _ in self.checks():
            for way in door.ways:
                for override in self.overrides(way, each.name):
                    said = override.config
                    if isinstance(said, ExtAuthzPerRoute) and said.check_settings:
                        yield way, each, said.check_settings

    def access_logs(self) -> Iterator[AccessLog]:
        """Return every access log, wherever one may stand."""
        for listener in self.listeners:
            yield from listener.access_log
        for bootstrap in self.bootstraps:
            yield from bootstrap.admin.access_log if bootstrap.admin else ()
        for door in self.doors:
            yield from door.manager.access_log
            for _, router in door.of(Router):
                yield from router.upstream_log

    def runs(self, each: Filter, way: Way) -> bool:
        """Whether a filter, which may be off by itself, runs on all shares of a way."""
        said = self.overrides(way, each.name)
        if any(override.disabled for override in said):
            return False
        shares = [each.name in one.typed_per_filter_config for one in way.weighted]
        turned_on = len(said) > sum(shares) or (bool(said) and all(shares))
        return turned_on or not each.message.disabled

    def filled(self, message: Message, *names: str) -> Iterator[Problem]:
        """Return the fields of a message that should be empty and are not."""
        for name in names:
            if message.is_set(name):
                yield self.place(message, name), f"{name} is set."

    def overrides(self, way: Way, name: str) -> list[Override]:
        """Return what a way says for the filter of a name."""
        return [
            self._override(level, level.typed_per_filter_config[name])
            for level in way.levels
            if name in level.typed_per_filter_config
        ]

    def place(self, message: Message, name: str = "") -> Place:
        """Return where a field of a message stands, else where the message does."""
        return self.reader.place(message, name)

    def given(self, source: ConfigSource) -> bool:
        """Whether what a source names is among the files; folders may differ."""
        by_path = source.path_config_source
        path = by_path.path if by_path else source.path
        names = {PurePath(file).name for file in self.files}
        return path is not None and PurePath(path).name in names

    def _add_resource(self, message: Message | None) -> None:
        name = (type(message), str(getattr(message, "name", "")))
        if message is not None and name[1] and name in self._names:
            self.again.append((message, name[1]))
        self._names.add(name)
        match message:
            case Listener():
                self.listeners.append(message)
            case Cluster():
                self.clusters[message.name] = message
            case RouteConfiguration():
                self.tables.append(message)
            case ClusterLoadAssignment():
                self.loads.append(message)
            case Secret():
                self.secrets[message.name] = message
            case Message():
                self.unjudged.append(message)

    def _doors(self, listener: Listener) -> Iterator[Door]:
        chains = [*listener.filter_chains]
        chains += (
            [listener.default_filter_chain] if listener.default_filter_chain else []
        )
        for chain in chains:
            for network in chain.filters:
                manager = self.reader.unpacked(network.typed_config)
                if isinstance(manager, HttpConnectionManager):
                    yield self._door(listener, chain, manager)
        if listener.api_listener:
            manager = self.reader.unpacked(listener.api_listener.api_listener)
            if isinstance(manager, HttpConnectionManager):
                yield self._door(listener, None, manager)

    def _door(
        self,
        listener: Listener,
        chain: FilterChain | None,
        manager: HttpConnectionManager,
    ) -> Door:
        filters = [
            Filter(each, self.reader.unpacked(each.typed_config))
            for each in manager.http_filters
        ]
        name = manager.rds.route_config_name if manager.rds else None
        named = [each for each in self.tables if each.name == name]
        routes = manager.route_config
        if routes is None and named:
            routes = named[0]
        ways = ways_of(routes) if routes else []
        return Door(listener, chain, manager, filters, routes, ways)

    def _override(self, level: Level, packed: Any) -> Override:
        config = self.reader.unpacked(packed)
        disabled = bool(getattr(config, "disabled", False))
        if isinstance(config, FilterConfig):
            config = self.reader.unpacked(config.config)
            disabled = disabled or bool(getattr(config, "disabled", False))
        return Override(level, config, disabled)


def _where(address: Address | None) -> object:
    """Return what two addresses of the same place have in common."""
    if address and address.pipe:
        return address.pipe.path
    socket = address.socket_address if address else None
    # Where nothing is said, no two places are the same.
    return (socket.address, socket.port_value or 0) if socket else object()
