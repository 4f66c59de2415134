"""The filters beside the check that the promises rest on: in place, and left alone."""

from __future__ import annotations

import re
from hashlib import sha256
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
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua, LuaPerRoute
from envoy_data_plane.envoy.extensions.filters.http.ratelimit.v3 import RateLimit
from envoy_data_plane.envoy.extensions.filters.http.rbac.v3 import Rbac
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router

from authz.envoy_check.doors import script_of
from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from betterproto2 import Message

    from authz.envoy_check.config import Config
    from authz.envoy_check.doors import Door, Filter
    from authz.envoy_check.findings import Problem

_MARK = "x-envoy-upstream-service-time"
_OUTSIDE = ("browsers", "guard")
_SCRIPTS = (*_OUTSIDE, "forwarded_headers")
# What the three scripts of envoy/listener.yaml are, without what stands in the first
# table: another word in them, and the promise may be another.
_DIGESTS = {
    "browsers": "b502af4e922cb17111ddf6efa1a2accd277dfe09",
    "forwarded_headers": "2b8d07cb693b94aac291ac1989700806c4dcfee3",
    "guard": "b55e676a9fd19f82960309ea1341cb9fa5a6726f",
}
_TABLE = re.compile(r"local (?:origins|forwarded) = \{([^}]*)\}")
_COMMENT = re.compile(r"--(?!\[)[^\r\n]*")
_ENTRY = re.compile(r'\s*\["([^"\\\s]+)"\]\s*=\s*true\s*')
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+")
_HEADER = re.compile(r":(?:method|path|scheme|authority)|[a-z0-9-]+")
_CREDENTIAL = re.compile(r"auth|key|token|secret|cookie|credential|password|session")
# Fields of HeaderMutation.
_OF_REQUESTS = (
    *("request_mutations", "query_parameter_mutations"),
    "request_trailers_mutations",
)
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
        said = each.config.mutations
        return said is None or not any(said.is_set(name) for name in _OF_REQUESTS)
    return each.name in _OUTSIDE and isinstance(each.config, Lua)


def _changed(each: Filter) -> str:
    """Return what is wrong with one of our scripts."""
    script = script_of(each)
    text = (script.inline_string or "") if script else ""
    table = _TABLE.search(text)
    if table and (odd := _odd_entry(each.name, table[1])):
        return odd
    rest = _TABLE.sub("table", text, count=1)
    lines = [line.strip() for line in rest.split("\n")]
    digest = sha256("\n".join(filter(None, lines)).encode()).hexdigest()[:40]
    same = digest == _DIGESTS[each.name]
    return "" if same else f"The script of {each.name!r} is another than ours."


def _odd_entry(name: str, table: str) -> str:
    entries = _COMMENT.sub("", table).strip().removesuffix(",").split(",")
    for entry in filter(str.strip, entries):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            return f"The table of {name!r} has more than names that are true."
        if not (_is_origin if name == "browsers" else _may_travel)(match[1]):
            return f"{match[1]!r} may not stand in the table of {name!r}."
    return ""


def _is_origin(name: str) -> bool:
    return _ORIGIN.fullmatch(name) is not None


def _may_travel(name: str) -> bool:
    return _HEADER.fullmatch(name) is not None and (
        name == ":authority" or not _CREDENTIAL.search(name)
    )


@rule(
    "browsers",
    why="It answers before anybody is asked, and sees every key.",
    mend="Take the script of envoy/listener.yaml; only its origins are yours.",
)
def browsers(config: Config) -> Iterator[Problem]:
    """Look for another script that stands outside of all."""
    for door in config.gateways:
        for each, _ in door.of(Lua):
            if each.name == "browsers" and (what := _changed(each)):
                yield config.place(each.message), what


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
        elif found.message.disabled:
            yield config.place(found.message), "The filter guard is turned off."
        elif what := _changed(found):
            yield config.place(found.message), what


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
        elif last.message.disabled:
            yield config.place(last.message), "forwarded_headers is turned off."
        elif what := _changed(last):
            yield config.place(last.message), what


@rule(
    "filter-changed-on-route",
    why="On this route the gateway keeps less than it promises.",
    mend="Take the override away.",
)
def filter_changed_on_route(config: Config) -> Iterator[Problem]:
    """Look for routes on which these filters do something else."""
    for door in config.gateways:
        kept = [each for each, _ in door.of(Lua)]
        kept += [each for each, _ in door.of(HeaderMutation)]
        limits = [each for each, _ in door.of(LocalRateLimit)]
        for way in door.ways:
            for each in kept + (limits if way.route.route else []):
                for override in config.overrides(way, each.name):
                    if each.name == "browsers" and _only_off(override.config):
                        continue
                    place = config.place(override.level, "typed_per_filter_config")
                    what = f"Route {way.route.name!r} changes the filter {each.name!r}."
                    yield place, what


def _only_off(said: Message | None) -> bool:
    return said is None or (isinstance(said, LuaPerRoute) and said.disabled is True)


@rule(
    "upstream-mark",
    why=f"By {_MARK} gateway.lua knows what the model server said; without it that"
    " server's errors leave as they are.",
    mend="Set suppress_envoy_headers to false; remove no x-envoy- header on a route,"
    " and none before gateway.lua.",
)
def upstream_mark(config: Config) -> Iterator[Problem]:
    """Look for what takes away the sign of an upstream response."""
    for door in config.gateways:
        for _, router in door.of(Router):
            if router.suppress_envoy_headers:
                place = config.place(router, "suppress_envoy_headers")
                yield place, "suppress_envoy_headers is true."
        lua = _gateway_lua(door)
        inside = door.filters[list(door.filters).index(lua) :] if lua else ()
        for each in inside:
            if isinstance(each.config, HeaderMutation):
                what = f"Filter {each.name!r} changes headers before gateway.lua."
                yield config.place(each.message), what
        yield from _mark_removed(config, door)


def _mark_removed(config: Config, door: Door) -> Iterator[Problem]:
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
