"""Times: long enough for every answer, and no stream or upload without an end."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authz.envoy_check.config import Config
    from authz.envoy_check.findings import Problem

_ZERO = timedelta()
_SHORTEST_SILENCE = timedelta(seconds=60)
_LONGEST_UPLOAD = timedelta(minutes=10)


@rule(
    "stream-cut",
    why="Unset, Envoy ends every answer after 15 s; a model that is being loaded is"
    " silent for minutes.",
    mend="Set the route's timeout to 0s; silence and length have their own bounds.",
)
def stream_cut(config: Config) -> Iterator[Problem]:
    """Look for times that end answers which still run."""
    for door in config.gateways:
        silence = door.manager.stream_idle_timeout
        if silence and _ZERO < silence < _SHORTEST_SILENCE:
            place = config.place(door.manager, "stream_idle_timeout")
            yield place, f"A silence of {silence.total_seconds():g} s ends a stream."
        for way in door.ways:
            action = way.route.route
            if action is None:
                continue
            if action.timeout != _ZERO:
                place = config.place(action, "timeout")
                yield place, f"The timeout of route {way.route.name!r} is not 0s."
            if action.idle_timeout and action.idle_timeout < _SHORTEST_SILENCE:
                place = config.place(action, "idle_timeout")
                yield place, f"A short silence ends streams of {way.route.name!r}."


@rule(
    "stream-never-ends",
    why="A stream outlives the revocation of its key until this ends it.",
    mend="Set max_stream_duration (3600s) and stream_idle_timeout (600s) in the"
    " connection manager, and no zero on a route.",
)
def stream_never_ends(config: Config) -> Iterator[Problem]:
    """Look for streams without an end."""
    for door in config.gateways:
        options = door.manager.common_http_protocol_options
        if not (options and options.max_stream_duration):
            owner = options or door.manager
            place = config.place(owner, "max_stream_duration")
            yield place, "There is no max_stream_duration."
        if door.manager.stream_idle_timeout == _ZERO:
            place = config.place(door.manager, "stream_idle_timeout")
            yield place, "stream_idle_timeout is 0."
        for way in door.ways:
            action = way.route.route
            if action and action.idle_timeout == _ZERO:
                place = config.place(action, "idle_timeout")
                yield place, f"idle_timeout of {way.route.name!r} is 0."
            if action and action.max_stream_duration is not None:
                place = config.place(action, "max_stream_duration")
                yield place, f"Route {way.route.name!r} has a duration of its own."


@rule(
    "upload-without-end",
    why="Connections that send a byte now and then hold what they got for ever.",
    mend="Set request_headers_timeout (10s), request_timeout (60s) and idle_timeout"
    " (300s, under common_http_protocol_options).",
)
def upload_without_end(config: Config) -> Iterator[Problem]:
    """Look for requests that may take for ever to arrive."""
    for door in config.doors:
        for name in ("request_headers_timeout", "request_timeout"):
            time = getattr(door.manager, name)
            if not (time and time <= _LONGEST_UPLOAD):
                place = config.place(door.manager, name)
                yield place, f"{name} is unset, zero or over ten minutes."
        options = door.manager.common_http_protocol_options
        if options and options.idle_timeout == timedelta():
            yield config.place(options, "idle_timeout"), "idle_timeout is 0."
