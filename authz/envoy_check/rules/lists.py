"""The lists of models, which authz cuts down to what a key may use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    ExtProcPerRoute,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)

from authz.core.lists import LISTS
from authz.envoy_check.doors import CHECK
from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.config.route.v3 import RouteMatch

    from authz.envoy_check.config import Config
    from authz.envoy_check.doors import Door, Filter, Way
    from authz.envoy_check.findings import Problem

_PATHS = [path.replace(":model", "any") for path in sorted(LISTS)]
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
    for path in _PATHS:
        earlier: list[Way] = []
        for way in door.ways:
            if way.route.route is None or not _may_take(way.route.match, path):
                continue
            if any(config.runs(each, way) for each in cutting):
                earlier.append(way)
            elif not any(_takes_before(first, way) for first in earlier):
                what = f"Route {way.route.name!r} may take {path}, uncut."
                yield config.place(way.route), what


def _may_take(match: RouteMatch | None, path: str) -> bool:
    """Whether a route may take a path; one that we cannot read may."""
    if match is None:
        return True
    if match.path is not None:
        return match.path == path
    if match.prefix is not None:
        return path.startswith(match.prefix)
    if match.safe_regex is not None:
        try:
            return re.fullmatch(match.safe_regex.regex, path) is not None
        except re.error:
            return True
    return match.path_separated_prefix is None or path.startswith(
        match.path_separated_prefix
    )


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
    why="Only a list that is held whole can be cut, or become an error.",
    mend="Set response_header_mode SEND, response_body_mode BUFFERED and the forwarding"
    " namespace of ext_authz, and change them on no route.",
)
def list_mode(config: Config) -> Iterator[Problem]:
    """Look for lists that are shown before, or without, a word of authz."""
    for door in config.gateways:
        for each, settings in door.of(ExternalProcessor):
            mode = settings.processing_mode
            if mode is None or not _holds(mode):
                place = config.place(mode or settings, "response_body_mode")
                yield place, "ext_proc does not hold the response."
            for name in ("observability_mode", "allow_mode_override"):
                if getattr(settings, name):
                    yield config.place(settings, name), f"{name} is true."
            if CHECK not in _forwarded(settings):
                place = config.place(settings, "metadata_options")
                yield place, f"ext_proc does not tell what {CHECK} said."
            yield from _changed_on_routes(config, door, each)


def _holds(mode: ProcessingMode) -> bool:
    return (
        mode.response_header_mode != ProcessingModeHeaderSendMode.SKIP
        and mode.response_body_mode == ProcessingModeBodySendMode.BUFFERED
    )


def _forwarded(settings: ExternalProcessor) -> list[str]:
    options = settings.metadata_options
    names = options.forwarding_namespaces if options else None
    return list(names.untyped) if names else []


def _changed_on_routes(config: Config, door: Door, each: Filter) -> Iterator[Problem]:
    for way in door.ways:
        for override in config.overrides(way, each.name):
            said = override.config
            more = said.overrides if isinstance(said, ExtProcPerRoute) else None
            for name in ("processing_mode", "grpc_service", "metadata_options"):
                if more is not None and more.is_set(name):
                    place = config.place(more, name)
                    yield place, f"Route {way.route.name!r} has a {name} of its own."
