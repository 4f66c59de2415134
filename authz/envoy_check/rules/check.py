"""The check: there for every request, after all that changes one, closed on failure."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    ExtProcOverrides,
)
from envoy_data_plane.envoy.extensions.filters.http.local_ratelimit.v3 import (
    LocalRateLimit,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.ratelimit.v3 import RateLimit
from envoy_data_plane.envoy.extensions.filters.http.rbac.v3 import Rbac
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.http.upstream_codec.v3 import (
    UpstreamCodec,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptions
from envoy_data_plane.envoy.type.v3 import StatusCode

from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authz.envoy_check.config import Config
    from authz.envoy_check.doors import Filter, Way
    from authz.envoy_check.findings import Problem

_UNAVAILABLE = StatusCode.ServiceUnavailable
# They refuse requests and change none.
_HARMLESS_AFTER_CHECK = (RateLimit, LocalRateLimit, Rbac, ExternalProcessor)


@rule(
    "no-ext-authz",
    why="Whoever reaches this port uses the model server without a key.",
    mend="Add the filter ext_authz with with_request_body, or take the routes away.",
)
def no_ext_authz(config: Config) -> Iterator[Problem]:
    """Look for doors that ask nobody."""
    for door in config.gateways:
        if not door.full_checks:
            what = f"Listener {door.listener.name!r} asks no ext_authz."
            yield config.place(door.manager, "http_filters"), what


@rule(
    "ext-authz-off",
    why="These requests reach the model server without a verdict.",
    mend="Take disabled and is_optional away.",
)
def ext_authz_off(config: Config) -> Iterator[Problem]:
    """Look for checks that are there and do not run."""
    for door in config.gateways:
        for each in door.full_checks:
            for name in ("disabled", "is_optional"):
                if getattr(each.message, name):
                    yield config.place(each.message, name), f"The check is {name}."
            for way in door.ways:
                if way.route.route is not None:
                    yield from _off(config, way, each)


def _off(config: Config, way: Way, each: Filter) -> Iterator[Problem]:
    for override in config.overrides(way, each.name):
        if override.disabled:
            place = config.place(override.level, "typed_per_filter_config")
            yield place, f"Route {way.route.name!r} goes without {each.name}."


@rule(
    "ext-authz-conditional",
    why="A check that takes place only sometimes is none.",
    mend="Let it run for every request; to let a path pass, change authz.",
)
def conditional(config: Config) -> Iterator[Problem]:
    """Look for conditions on the check, and for wrappers that may hide one."""
    names = ("filter_enabled", "filter_enabled_metadata", "shadow_mode")
    for _, _, settings in config.checks():
        yield from config.filled(settings, *names)
    for door in config.gateways:
        for each in door.filters:
            if type(each.config).__name__ in ("ExtensionWithMatcher", "Composite"):
                yield config.place(each.message), f"Filter {each.name!r} wraps others."
            elif each.message.config_discovery is not None:
                what = f"Filter {each.name!r} is configured elsewhere."
                yield config.place(each.message, "config_discovery"), what


@rule(
    "changed-after-check",
    why="The model server would act on another request than the one authz allowed.",
    mend="Put the filter before ext_authz; only filters that refuse may follow it.",
)
def changed_after_check(config: Config) -> Iterator[Problem]:
    """Look at what stands between the check and the model server."""
    for door in config.gateways:
        checks = [index for index, each in enumerate(door.filters) if each.full_check]
        for each in door.before_router[max(checks, default=-1) + 1 :] if checks else ():
            if not _harmless(each):
                what = f"Filter {each.name!r} stands after the check."
                yield config.place(each.message), what
    lists = [each.upstream_http_filters for each in config.reader.all(Router)]
    lists += [each.http_filters for each in config.reader.all(HttpProtocolOptions)]
    for behind in itertools.chain.from_iterable(lists):
        if not isinstance(config.reader.unpacked(behind.typed_config), UpstreamCodec):
            what = f"Filter {behind.name!r} stands behind the router."
            yield config.place(behind), what


def _harmless(each: Filter) -> bool:
    # The last script, which drops what may not travel, has rules of its own.
    script = each.name == "forwarded_headers" and isinstance(each.config, Lua)
    return script or isinstance(each.config, _HARMLESS_AFTER_CHECK)


@rule(
    "failure-mode-allow",
    why="While authz is down everything would pass, and every list be shown whole.",
    mend="Set failure_mode_allow to false.",
)
def failure_mode_allow(config: Config) -> Iterator[Problem]:
    """Look for checks that are open when they fail."""
    for kind in (ExtAuthz, ExternalProcessor, ExtProcOverrides):
        for settings in config.reader.all(kind):
            yield from config.filled(settings, "failure_mode_allow")


@rule(
    "status-on-error",
    why="A failure of authz would look like a refusal (403), which is final.",
    mend="Set status_on_error to {code: ServiceUnavailable}.",
)
def status_on_error(config: Config) -> Iterator[Problem]:
    """Look for failures that would look like refusals."""
    for _, _, settings in config.checks():
        said = settings.status_on_error
        if said is None or said.code != _UNAVAILABLE:
            place = config.place(settings, "status_on_error")
            yield place, "status_on_error is not ServiceUnavailable."


@rule(
    "clear-route-cache",
    why="A request would take another route than the one it was checked for.",
    mend="Set clear_route_cache to false; Lua's default is true, so write it down.",
)
def clear_route_cache(config: Config) -> Iterator[Problem]:
    """Look for filters that choose the route anew, from the check on."""
    for door in config.gateways:
        seen = False
        for each in door.before_router:
            seen = seen or isinstance(each.config, ExtAuthz)
            if seen and _chooses_anew(each):
                place = config.place(each.config or each.message, "clear_route_cache")
                yield place, f"Filter {each.name!r} clears the route cache."


def _chooses_anew(each: Filter) -> bool:
    match each.config:
        case ExtAuthz():
            return each.config.clear_route_cache
        case Lua():
            return each.config.clear_route_cache is not False
        case ExternalProcessor():
            return each.config.route_cache_action == 1
        case _:
            return False
