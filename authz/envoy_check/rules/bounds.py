"""Bounds: on streams, headers, connections, buffers and memory."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.cluster.v3 import CircuitBreakersThresholds
from envoy_data_plane.envoy.extensions.resource_monitors.downstream_connections.v3 import (  # noqa: E501
    DownstreamConnectionsConfig,
)
from envoy_data_plane.envoy.extensions.resource_monitors.fixed_heap.v3 import (
    FixedHeapConfig,
)

from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from betterproto2 import Message
    from envoy_data_plane.envoy.config.overload.v3 import OverloadManager

    from authz.envoy_check.config import Config
    from authz.envoy_check.findings import Problem

_MOST_STREAMS = 1000
_LARGEST_WINDOW = 1024 * 1024
_LARGEST_CONNECTION_WINDOW = 16 * 1024 * 1024
_LARGEST_HEADERS_KB = 96
_MOST_HEADERS = 200
_LARGEST_BUFFER = 1024 * 1024
_LARGEST_HEAP = 16 * 1024**3
_MOST_CONNECTIONS = 100_000
_MOST_UPSTREAM = 10_000
_LARGEST_BODY = 16 * 1024 * 1024
_SLOWEST_REFRESH = timedelta(seconds=1)
# From which share of the heap on at the latest.
_REFUSE = ("envoy.overload_actions.stop_accepting_requests", 0.99)
_RESET = ("envoy.overload_actions.reset_high_memory_stream", 1.0)
# Streams that hold less than 2^20 bytes need not be told apart.
_LARGEST_UNTRACKED = 20
# Envoy's own bounds on floods of frames.
_FRAMES = {
    "max_outbound_frames": 10_000,
    "max_outbound_control_frames": 1000,
    "max_consecutive_inbound_frames_with_empty_payload": 1,
    "max_inbound_priority_frames_per_stream": 100,
    "max_inbound_window_update_frames_per_data_frame_sent": 10,
}


def _beyond(
    config: Config, owner: Message, name: str, most: int, *, default: int | None = None
) -> Iterator[Problem]:
    """Look at a bound, which must be set if Envoy has no good one itself."""
    value = getattr(owner, name)
    value = default if value is None else value
    if not value or value > most:
        told = f"is {value}" if value else "is not set"
        yield config.place(owner, name), f"{name} {told}; it may be up to {most}."


@rule(
    "streams-unbounded",
    why="One connection without a key can make Envoy keep this much for each stream.",
    mend="Set under http2_protocol_options max_concurrent_streams 100,"
    " initial_stream_window_size 65536 and initial_connection_window_size 1048576.",
)
def streams_unbounded(config: Config) -> Iterator[Problem]:
    """Look for connections with too many streams."""
    bounds = {
        "max_concurrent_streams": _MOST_STREAMS,
        "initial_stream_window_size": _LARGEST_WINDOW,
        "initial_connection_window_size": _LARGEST_CONNECTION_WINDOW,
    }
    for door in config.gateways:
        options = door.manager.http2_protocol_options
        if options is None:
            yield config.place(door.manager), "There are no http2_protocol_options."
            continue
        for name, most in bounds.items():
            yield from _beyond(config, options, name, most)
        for name, most in _FRAMES.items():
            yield from _beyond(config, options, name, most, default=most)


@rule(
    "headers-unbounded",
    why="Headers are held for every request, and sent to authz with each check.",
    mend="Set max_request_headers_kb to 16 and max_headers_count to 100.",
)
def headers_unbounded(config: Config) -> Iterator[Problem]:
    """Look for headers without a bound."""
    for door in config.gateways:
        name = "max_request_headers_kb"
        yield from _beyond(config, door.manager, name, _LARGEST_HEADERS_KB)
        if options := door.manager.common_http_protocol_options:
            yield from _beyond(config, options, "max_headers_count", _MOST_HEADERS)


@rule(
    "buffers-unbounded",
    why="Unset, Envoy holds 1 MiB each way for everyone who reads slowly.",
    mend="Set per_connection_buffer_limit_bytes to 32768.",
)
def buffers_unbounded(config: Config) -> Iterator[Problem]:
    """Look for connections that may hold much."""
    name = "per_connection_buffer_limit_bytes"
    for door in config.gateways:
        yield from _beyond(config, door.listener, name, _LARGEST_BUFFER)
        for reached in sorted(config.reached(door)):
            if cluster := config.clusters.get(reached):
                yield from _beyond(config, cluster, name, _LARGEST_BUFFER)
        own = "request_body_buffer_limit"
        for level in (each for way in door.ways for each in (way.host, way.route)):
            most = _LARGEST_BODY
            yield from _beyond(config, level, own, most, default=most)


@rule(
    "upstream-unbounded",
    why="What waits for a model server fills Envoy's memory.",
    mend="Bound max_connections, max_pending_requests and max_requests under"
    " circuit_breakers.",
)
def upstream_unbounded(config: Config) -> Iterator[Problem]:
    """Look for circuit breakers that never break."""
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    most = _MOST_UPSTREAM
    for bounds in config.reader.all(CircuitBreakersThresholds):
        for name in names:
            yield from _beyond(config, bounds, name, most, default=most)


@rule(
    "connections-unbounded",
    why="Open connections alone can fill Envoy's memory.",
    mend="Set max_active_downstream_connections under the resource monitor"
    " global_downstream_max_connections.",
)
def connections_unbounded(config: Config) -> Iterator[Problem]:
    """Look for the bound on connections."""
    bounds = config.reader.all(DownstreamConnectionsConfig)
    name = "max_active_downstream_connections"
    for each in bounds:
        yield from _beyond(config, each, name, _MOST_CONNECTIONS)
    if not bounds or not all(getattr(each, name) for each in bounds):
        for bootstrap in config.bootstraps if config.gateways else ():
            place = config.place(bootstrap, "overload_manager")
            yield place, "Connections are not bounded."


@rule(
    "heap-unbounded",
    why="Envoy is killed when memory runs out, and every stream with it.",
    mend="Set max_heap_size_bytes under the resource monitor fixed_heap and let it"
    " trigger stop_accepting_requests and reset_high_memory_stream, as envoy.yaml"
    " does.",
)
def heap_unbounded(config: Config) -> Iterator[Problem]:
    """Look for the bound on memory, and for what happens then."""
    for bootstrap in config.bootstraps if config.gateways else ():
        manager = bootstrap.overload_manager
        if manager is None:
            yield config.place(bootstrap), "There is no overload_manager."
            continue
        bounded = _bounded(config, manager)
        for name, most in (_REFUSE, _RESET):
            if not bounded & _triggers(manager, name, most):
                place = config.place(bootstrap, "overload_manager")
                yield place, f"Memory is not bounded, or does not lead to {name}."
        if manager.refresh_interval and manager.refresh_interval > _SLOWEST_REFRESH:
            place = config.place(manager, "refresh_interval")
            yield place, "Memory is looked at too seldom."
        accounts, most = manager.buffer_factory_config, _LARGEST_UNTRACKED
        name = "minimum_account_to_track_power_of_two"
        if accounts is None:
            place = config.place(manager)
            yield place, "Nothing tells which streams hold how much."
        else:
            yield from _beyond(config, accounts, name, most)


def _bounded(config: Config, manager: OverloadManager) -> set[str]:
    """Return the monitors that know a bound on memory."""
    monitors = {
        each.name: config.reader.unpacked(each.typed_config)
        for each in manager.resource_monitors
    }
    return {
        name
        for name, each in monitors.items()
        if isinstance(each, FixedHeapConfig)
        and 0 < each.max_heap_size_bytes <= _LARGEST_HEAP
    }


def _triggers(manager: OverloadManager, action: str, most: float) -> set[str]:
    """Return the monitors that lead to an action in time."""
    return {
        each.name
        for taken in manager.actions
        if taken.name == action
        for each in taken.triggers
        if (each.threshold and 0 < each.threshold.value <= most)
        or (each.scaled and 0 < each.scaled.saturation_threshold <= most)
    }


@rule(
    "overload-bypassed",
    why="The bounds on connections and memory do not count here.",
    mend="Take the setting away; only the listener of the metrics may have it.",
)
def overload_bypassed(config: Config) -> Iterator[Problem]:
    """Look for gateways that the overload manager does not reach."""
    for door in config.gateways:
        for name in ("ignore_global_conn_limit", "bypass_overload_manager"):
            if getattr(door.listener, name):
                yield config.place(door.listener, name), f"{name} is true."
