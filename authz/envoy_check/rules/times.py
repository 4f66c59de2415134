"""Times: long enough for every answer, and no stream or upload without an end."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.core.v3 import HttpProtocolOptions
from envoy_data_plane.envoy.config.route.v3 import RetryPolicy

from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from betterproto2 import Message

    from authz.envoy_check.config import Config
    from authz.envoy_check.doors import Door
    from authz.envoy_check.findings import Problem

_ZERO = timedelta()
_SHORTEST_ANSWER = timedelta(seconds=60)
_SHORTEST_UPLOAD = timedelta(seconds=1)
_LONGEST_ANSWER = timedelta(days=1)
_LONGEST_UPLOAD = timedelta(hours=1)
_LONGEST_WAIT = timedelta(minutes=10)


def _short(
    config: Config, owner: Message, name: str, least: timedelta
) -> Iterator[Problem]:
    """Look at a time that must not be short, if there is one."""
    time = getattr(owner, name)
    if time is not None and _ZERO < time < least:
        seconds = time.total_seconds()
        yield config.place(owner, name), f"{name} is {seconds:g} s."


def _endless(
    config: Config, owner: Message, name: str, most: timedelta, *, unset: bool = False
) -> Iterator[Problem]:
    """Look at a time that must end; ``unset`` says that Envoy has one itself."""
    time = getattr(owner, name)
    if not (unset if time is None else _ZERO < time <= most):
        what = f"{name} is unset, zero or over {most.total_seconds():g} s."
        yield config.place(owner, name), what


@rule(
    "stream-cut",
    why="Unset, Envoy ends every answer after 15 s; a model that is being loaded is"
    " silent for minutes.",
    mend="Set the route's timeout to 0s; silence and length have their own bounds, of"
    " a minute or more.",
)
def stream_cut(config: Config) -> Iterator[Problem]:
    """Look for times that end answers which still run."""
    names = ("max_stream_duration", "per_try_timeout", "per_try_idle_timeout")
    owners = [*config.reader.all(HttpProtocolOptions), *config.reader.all(RetryPolicy)]
    for owner, name in itertools.product(owners, names):
        if hasattr(owner, name):
            yield from _short(config, owner, name, _SHORTEST_ANSWER)
    for door in config.gateways:
        manager = door.manager
        yield from _short(config, manager, "stream_idle_timeout", _SHORTEST_ANSWER)
        yield from _short(config, manager, "request_timeout", _SHORTEST_UPLOAD)
        for action in filter(None, (way.route.route for way in door.ways)):
            if action.timeout is None:
                yield config.place(action), "A route's timeout is not set."
            for name in ("timeout", "idle_timeout"):
                yield from _short(config, action, name, _SHORTEST_ANSWER)


@rule(
    "stream-never-ends",
    why="A stream outlives the revocation of its key until this ends it.",
    mend="Set max_stream_duration (3600s) and stream_idle_timeout (600s) in the"
    " connection manager, up to a day, and no zero on a route.",
)
def stream_never_ends(config: Config) -> Iterator[Problem]:
    """Look for streams without an end."""
    most = _LONGEST_ANSWER
    for door in config.gateways:
        manager = door.manager
        if options := manager.common_http_protocol_options:
            yield from _endless(config, options, "max_stream_duration", most)
        else:
            yield config.place(manager), "There is no max_stream_duration."
        yield from _endless(config, manager, "stream_idle_timeout", most, unset=True)
        for way in door.ways:
            action = way.route.route
            if action:
                yield from _endless(config, action, "idle_timeout", most, unset=True)
                yield from config.filled(action, "max_stream_duration")


@rule(
    "upload-without-end",
    why="Connections that send a byte now and then, or read none, hold what they got"
    " for ever.",
    mend="Set request_headers_timeout (10s), request_timeout (60s),"
    " stream_flush_timeout (30s) and idle_timeout (300s, under"
    " common_http_protocol_options), with TLS transport_socket_connect_timeout (10s),"
    " and no zero.",
)
def upload_without_end(config: Config) -> Iterator[Problem]:
    """Look for requests that may take for ever to arrive."""
    for door in config.doors:
        manager, wait = door.manager, _LONGEST_WAIT
        yield from _endless(config, manager, "request_headers_timeout", wait)
        yield from _endless(config, manager, "request_timeout", _LONGEST_UPLOAD)
        yield from _endless(config, manager, "delayed_close_timeout", wait, unset=True)
        if options := manager.common_http_protocol_options:
            name = "idle_timeout"
            yield from _endless(config, options, name, _LONGEST_UPLOAD, unset=True)
    for door in config.gateways:
        yield from _connections(config, door)


def _connections(config: Config, door: Door) -> Iterator[Problem]:
    wait = _LONGEST_WAIT
    yield from _endless(config, door.manager, "stream_flush_timeout", wait)
    name = "listener_filters_timeout"
    yield from _endless(config, door.listener, name, wait, unset=True)
    if door.chain and door.chain.transport_socket:
        name = "transport_socket_connect_timeout"
        yield from _endless(config, door.chain, name, wait)
