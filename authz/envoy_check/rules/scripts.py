"""The filters beside the check that the promises rest on: in place, and left alone."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.filters.http.adaptive_concurrency.v3 import (
    AdaptiveConcurrency,
)
from envoy_data_plane.envoy.extensions.filters.http.admission_control.v3 import (
    AdmissionControl,
)
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import Cors
from envoy_data_plane.envoy.extensions.filters.http.csrf.v3 import CsrfPolicy
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ExternalProcessor
from envoy_data_plane.envoy.extensions.filters.http.fault.v3 import HttpFault
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import (
    HeaderMutation,
)
from envoy_data_plane.envoy.extensions.filters.http.ip_tagging.v3 import IpTagging
from envoy_data_plane.envoy.extensions.filters.http.local_ratelimit.v3 import (
    LocalRateLimit,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.http.ratelimit.v3 import RateLimit
from envoy_data_plane.envoy.extensions.filters.http.rbac.v3 import Rbac
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router

from authz.envoy_check.doors import script_of
from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authz.envoy_check.config import Config
    from authz.envoy_check.doors import Door, Filter
    from authz.envoy_check.findings import Problem

_MARK = "x-envoy-upstream-service-time"
_OUTSIDE = ("browsers", "guard")
_SCRIPTS = (*_OUTSIDE, "forwarded_headers")
# What these do to a request is known: they ask, refuse, or touch headers that do not
# travel. Others may answer, forward, or write what is taken for a word of authz.
_JUDGED = (
    *(AdaptiveConcurrency, AdmissionControl, Cors, CsrfPolicy, ExtAuthz),
    *(ExternalProcessor, HttpFault, IpTagging, LocalRateLimit, RateLimit, Rbac, Router),
)


def _script(each: Filter) -> str:
    """Return the file of a Lua filter's script."""
    source = script_of(each)
    return PurePath(source.filename).name if source and source.filename else ""


def _named(door: Door, name: str) -> Filter | None:
    found = [each for each in door.filters if each.name == name]
    return next((each for each in found if isinstance(each.config, Lua)), None)


def _gateway_lua(door: Door) -> Filter | None:
    found = [each for each in door.filters if _script(each) == "gateway.lua"]
    return found[0] if found else None


@rule(
    "gateway-lua",
    why="Errors of the model server, and of every filter outside it, reach the client"
    " as they are; queries are not dropped.",
    mend="Have a Lua filter with filename gateway.lua before all others but"
    " header_mutation of responses, browsers and guard.",
)
def gateway_lua(config: Config) -> Iterator[Problem]:
    """Look for the script that every response passes last."""
    for door in config.gateways:
        lua = _gateway_lua(door)
        if lua is None:
            place = config.place(door.manager, "http_filters")
            yield place, "There is no filter with gateway.lua."
            continue
        if lua.message.disabled:
            yield config.place(lua.message, "disabled"), "gateway.lua is turned off."
        for each in door.filters[: list(door.filters).index(lua)]:
            if not _may_be_outside(each):
                what = f"Filter {each.name!r} stands outside gateway.lua."
                yield config.place(each.message), what


def _may_be_outside(each: Filter) -> bool:
    if isinstance(each.config, HeaderMutation):
        mutations = each.config.mutations
        return not (mutations and mutations.request_mutations)
    return each.name in _OUTSIDE and isinstance(each.config, Lua)


@rule(
    "guard",
    why="If gateway.lua fails, the model server's errors leave as they are.",
    mend="Have the filter guard of envoy/listener.yaml directly before gateway.lua.",
)
def guard(config: Config) -> Iterator[Problem]:
    """Look for the script that stands behind gateway.lua."""
    for door in config.gateways:
        lua, found = _gateway_lua(door), _named(door, "guard")
        if lua is None:
            continue
        names = list(door.filters)
        outside = found is not None and names.index(found) < names.index(lua)
        if found is None or not outside:
            yield config.place(lua.message), "There is no filter guard before it."
        elif found.message.disabled or _MARK not in _source(found):
            yield config.place(found.message), "The filter guard does nothing."


def _source(each: Filter) -> str:
    source = script_of(each)
    return (source.inline_string or "") if source else ""


@rule(
    "forwarded-headers",
    why="Credentials and whatever else a client sends would travel to the model server"
    " and to what stands behind it.",
    mend="Have the filter forwarded_headers of envoy/listener.yaml directly before the"
    " router.",
)
def forwarded_headers(config: Config) -> Iterator[Problem]:
    """Look for the script that lets only named headers travel."""
    for door in config.gateways:
        before = door.before_router
        last = before[-1] if before else None
        if last is None or last is not _named(door, "forwarded_headers"):
            owner = last.message if last else door.manager
            what = "forwarded_headers is not last before the router."
            yield config.place(owner), what
        elif last.message.disabled or "headers:remove" not in _source(last):
            yield config.place(last.message), "forwarded_headers removes nothing."


@rule(
    "filter-changed-on-route",
    why="On this route the gateway keeps less than it promises.",
    mend="Take the override away.",
)
def filter_changed_on_route(config: Config) -> Iterator[Problem]:
    """Look for routes on which these filters do something else."""
    for door in config.gateways:
        kept = [each for each, _ in door.of(Lua) if each.name != "browsers"]
        kept += [each for each, _ in door.of(HeaderMutation)]
        limits = [each for each, _ in door.of(LocalRateLimit)]
        for way in door.ways:
            for each in kept + (limits if way.route.route else []):
                for override in config.overrides(way, each.name):
                    place = config.place(override.level, "typed_per_filter_config")
                    what = f"Route {way.route.name!r} changes the filter {each.name!r}."
                    yield place, what


@rule(
    "upstream-mark",
    why=f"By {_MARK} gateway.lua knows what the model server said; without it that"
    " server's errors leave as they are.",
    mend="Set suppress_envoy_headers to false; remove no x-envoy- header on a route.",
)
def upstream_mark(config: Config) -> Iterator[Problem]:
    """Look for what takes away the sign of an upstream response."""
    for door in config.gateways:
        for _, router in door.of(Router):
            if router.suppress_envoy_headers:
                place = config.place(router, "suppress_envoy_headers")
                yield place, "suppress_envoy_headers is true."
        for way in door.ways:
            for level in way.levels:
                if _MARK in [name.lower() for name in level.response_headers_to_remove]:
                    place = config.place(level, "response_headers_to_remove")
                    yield place, f"{_MARK} is removed."


@rule(
    "unjudged-filter",
    why="It may answer, forward or record requests by itself, or write metadata that is"
    " taken for a word of authz.",
    mend="Do without it, or put it into a gateway in front.",
)
def unjudged_filter(config: Config) -> Iterator[Problem]:
    """Look for filters of which the rules do not know what they do."""
    for door in config.gateways:
        for each in door.filters:
            known = each.name in _SCRIPTS if isinstance(each.config, Lua) else None
            known = known or _script(each) == "gateway.lua" or _may_be_outside(each)
            if not known and not isinstance(each.config, _JUDGED):
                yield config.place(each.message), f"Filter {each.name!r} is not judged."
