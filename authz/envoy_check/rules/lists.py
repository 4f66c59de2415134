"""The lists of models, which authz cuts down to what a key may use."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    ExtProcOverrides,
    ExtProcPerRoute,
    ProcessingMode,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ProcessingModeBodySendMode as Bodies,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ProcessingModeHeaderSendMode as Headers,
)

from authz.core.lists import LISTS
from authz.envoy_check.doors import CHECK
from authz.envoy_check.findings import rule
from authz.envoy_check.kinds import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from betterproto2 import Message
    from envoy_data_plane.envoy.config.route.v3 import RouteMatch

    from authz.envoy_check.config import Config
    from authz.envoy_check.doors import Door, Filter, Way
    from authz.envoy_check.findings import Problem

_PLAIN = re.compile(r"[A-Za-z0-9/_.()|?-]{0,200}")
_MOST_CHOICES = 12
_NAMES = ("any", "Llama3:8b", "a_b.c", "%61", "a" * 300)
_PATHS = sorted({path.replace(":model", name) for path in LISTS for name in _NAMES})
# What may be set of an ext_proc; failure_mode_allow has a rule of its own.
_KNOWN = {
    *("grpc_service", "processing_mode", "metadata_options", "message_timeout"),
    *("max_message_timeout", "failure_mode_allow", "stat_prefix"),
    *("deferred_close_timeout", "filter_metadata"),
}
# What a route may ask of a request beside its path and headers.
_MORE = (
    *("query_parameters", "cookies", "grpc", "runtime_fraction", "tls_context"),
    *("dynamic_metadata", "filter_state"),
)


@rule(
    "lists-not-cut",
    why="A key would see the names of models that it may not use.",
    mend="Turn ext_proc on (overrides: {}) for every route that a list may take.",
)
def lists_not_cut(config: Config) -> Iterator[Problem]:
    """Look for lists that reach a client whole."""
    for door in config.gateways:
        cutting = [each for each, _ in door.of(ExternalProcessor)]
        if door.full_checks and not cutting:
            place = config.place(door.manager, "http_filters")
            yield place, "There is no ext_proc."
        elif door.full_checks:
            yield from _uncut(config, door, cutting)


def _uncut(config: Config, door: Door, cutting: list[Filter]) -> Iterator[Problem]:
    ways = [
        (way, any(config.runs(each, way) for each in cutting))
        for way in door.ways
        if way.route.route is not None
    ]
    told: set[int] = set()
    for path in _PATHS:
        earlier: list[Way] = []
        for way, cut in ways:
            if cut and _takes(way.route.match, path):
                earlier.append(way)
                continue
            covered = cut or any(_takes_before(first, way) for first in earlier)
            if not covered and id(way) not in told and _may_take(way.route.match, path):
                told.add(id(way))
                what = f"Route {way.route.name!r} may take {path[:40]}, uncut."
                yield config.place(way.route), what


def _takes(match: RouteMatch | None, path: str) -> bool:
    """Whether a route surely takes a path."""
    if match is None:
        return False
    if match.safe_regex is not None:
        plain = _plain(match.safe_regex.regex)
        return plain is not None and plain.fullmatch(path) is not None
    return match.path == path or (
        match.prefix is not None and path.startswith(match.prefix)
    )


def _may_take(match: RouteMatch | None, path: str) -> bool:
    """Whether a route may take a path, in capitals or not."""
    if match is None:
        return True
    path = path.lower()
    if match.path is not None:
        return match.path.lower() == path
    if match.safe_regex is not None:
        plain = _plain(match.safe_regex.regex.lower())
        return plain is None or plain.fullmatch(path) is not None
    start = match.prefix if match.prefix is not None else match.path_separated_prefix
    return start is None or path.startswith(start.lower())


@cache
def _plain(regex: str) -> re.Pattern[str] | None:
    """Return an expression that all readers read alike, and soon; else None."""
    signs = regex.replace("[^/]+", "", 1)
    choices = sum(map(signs.count, "(|?"))
    if not _PLAIN.fullmatch(signs) or "(?" in signs or choices > _MOST_CHOICES:
        return None
    try:
        return re.compile(regex)
    except re.error:
        return None


def _takes_before(first: Way, later: Way) -> bool:
    """Whether an earlier route on the path takes all that a later one would."""
    one, other = first.route.match, later.route.match
    if first.host is not later.host or one is None or other is None:
        return False
    if any(one.is_set(name) for name in _MORE):
        return False
    return all(header in other.headers for header in one.headers)


@rule(
    "list-mode",
    why="Only a list that is held whole can be cut, or become an error; and ext_proc"
    " comes after the check, so it must not touch a request.",
    mend="Have one ext_proc, as in envoy/listener.yaml, and change it on no route.",
)
def list_mode(config: Config) -> Iterator[Problem]:
    """Look for lists that are shown before, or without, a word of authz."""
    for door in config.gateways:
        for index, (each, settings) in enumerate(door.of(ExternalProcessor)):
            if index:
                yield config.place(each.message), "There is a second ext_proc."
            mode = settings.processing_mode
            if mode is None or not _holds(mode):
                place = config.place(mode or settings, "response_body_mode")
                what = "ext_proc does more, or less, than to hold the response."
                yield place, what
            if not (settings.grpc_service and settings.grpc_service.envoy_grpc):
                yield config.place(settings), "ext_proc asks no cluster by envoy_grpc."
            yield from config.filled(settings, *_fields(ExternalProcessor, _KNOWN))
            if CHECK not in _forwarded(settings):
                place = config.place(settings, "metadata_options")
                yield place, f"ext_proc does not tell what {CHECK} said."
            yield from _changed_on_routes(config, door, each)


def _holds(mode: ProcessingMode) -> bool:
    return (
        mode.request_header_mode == Headers.SKIP
        and mode.request_body_mode == Bodies.NONE
        and mode.request_trailer_mode != Headers.SEND
        and mode.response_header_mode != Headers.SKIP
        and mode.response_body_mode == Bodies.BUFFERED
        and mode.response_trailer_mode != Headers.SEND
    )


def _fields(kind: type[Message], but: set[str]) -> list[str]:
    return sorted(set(names(kind).values()) - but)


def _forwarded(settings: ExternalProcessor) -> list[str]:
    options = settings.metadata_options
    spaces = options.forwarding_namespaces if options else None
    return list(spaces.untyped) if spaces else []


def _changed_on_routes(config: Config, door: Door, each: Filter) -> Iterator[Problem]:
    for way in door.ways:
        for override in config.overrides(way, each.name):
            said = override.config
            if not isinstance(said, ExtProcPerRoute) or said.overrides is None:
                continue
            for name in _fields(ExtProcOverrides, set()):
                if said.overrides.is_set(name):
                    place = config.place(said.overrides, name)
                    yield place, f"Route {way.route.name!r} has a {name} of its own."
