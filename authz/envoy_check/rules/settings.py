"""Settings that no rule knows: of these only what is harmless may be there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from betterproto2 import Message
from envoy_data_plane.envoy.config.core.v3 import TransportSocket
from envoy_data_plane.envoy.extensions.filters.listener.tls_inspector.v3 import (
    TlsInspector,
)
from envoy_data_plane.envoy.extensions.transport_sockets.raw_buffer.v3 import RawBuffer
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    DownstreamTlsContext,
    TlsParameters,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    TlsParametersTlsProtocol as Version,
)

from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authz.envoy_check.config import Config
    from authz.envoy_check.findings import Problem

# What other rules judge, and what opens nothing.
_BOOTSTRAP = frozenset(
    {
        *("admin", "dynamic_resources", "layered_runtime", "node", "overload_manager"),
        *("static_resources", "application_log_config", "memory_allocator_manager"),
        *("stats_config", "stats_flush_interval", "stats_flush_on_admin"),
        *("typed_dns_resolver_config", "use_tcp_for_dns_lookups", "watchdogs"),
    }
)
_DYNAMIC = frozenset({"ads_config", "cds_config", "lds_config"})
_LISTENER = frozenset(
    {
        *("access_log", "address", "api_listener", "bypass_overload_manager"),
        *("connection_balance_config", "default_filter_chain", "drain_type"),
        *("enable_reuse_port", "filter_chains", "ignore_global_conn_limit"),
        *("listener_filters", "listener_filters_timeout", "metadata", "name"),
        *("max_connections_to_accept_per_socket_event", "stat_prefix"),
        *("per_connection_buffer_limit_bytes", "tcp_backlog_size", "tcp_keepalive"),
        "traffic_direction",
    }
)
_MANAGER = frozenset(
    {
        *("access_log", "access_log_options", "append_x_forwarded_port", "codec_type"),
        *("common_http_protocol_options", "delayed_close_timeout", "drain_timeout"),
        *("generate_request_id", "http2_protocol_options", "http_filters"),
        *("http_protocol_options", "internal_address_config", "local_reply_config"),
        *("max_request_headers_kb", "merge_slashes", "normalize_path"),
        *("path_with_escaped_slashes_action", "preserve_external_request_id", "rds"),
        *("request_headers_timeout", "request_id_extension", "request_timeout"),
        *("route_config", "scoped_routes", "server_header_transformation"),
        *("server_name", "stat_prefix", "stream_flush_timeout", "stream_idle_timeout"),
        *("tracing", "upgrade_configs", "use_remote_address", "via"),
        *("xff_num_trusted_hops", "always_set_request_id_in_response"),
    }
)
_SOCKETS = (DownstreamTlsContext, RawBuffer, UpstreamTlsContext)
_OLD = (Version.TLSv1_0, Version.TLSv1_1)


@rule(
    "unjudged-setting",
    why="It may change requests, or what Envoy listens to, before any rule counts.",
    mend="Take the setting away.",
)
def unjudged_setting(config: Config) -> Iterator[Problem]:
    """Look for settings that are not among those known to open nothing."""
    for bootstrap in config.bootstraps:
        yield from _others(config, bootstrap, _BOOTSTRAP)
        if bootstrap.dynamic_resources:
            yield from _others(config, bootstrap.dynamic_resources, _DYNAMIC)
    for listener in config.listeners:
        yield from _others(config, listener, _LISTENER)
    for door in config.doors:
        yield from _others(config, door.manager, _MANAGER)
    for resource in config.unjudged:
        kind = type(resource).__name__
        yield config.place(resource), f"A resource of the type {kind}."


def _others(
    config: Config, message: Message, known: frozenset[str]
) -> Iterator[Problem]:
    for name in config.reader.written(message):
        value = getattr(message, name)
        # An empty message is there, and may do something.
        if name not in known and (value or isinstance(value, Message)):
            yield config.place(message, name), f"{name} is set."


@rule(
    "listener-filter",
    why="It may take a client's address from what the client says: limits of addresses"
    " and the log would go by it.",
    mend="Take it away; only tls_inspector may be there.",
)
def listener_filter(config: Config) -> Iterator[Problem]:
    """Look for what reads connections before the filters do."""
    for listener in config.listeners:
        for each in listener.listener_filters:
            if not isinstance(config.reader.unpacked(each.typed_config), TlsInspector):
                yield config.place(each), f"There is the filter {each.name!r}."


@rule(
    "transport",
    why="Whoever reads along has every key and prompt.",
    mend="Use TLS, 1.2 or later, without key_log, or none.",
)
def transport(config: Config) -> Iterator[Problem]:
    """Look for connections that are recorded, or weakly encrypted."""
    for socket in config.reader.all(TransportSocket):
        if not isinstance(config.reader.unpacked(socket.typed_config), _SOCKETS):
            yield config.place(socket), f"{socket.name!r} is neither TLS nor none."
    for context in config.reader.all(CommonTlsContext):
        yield from config.filled(context, "key_log", "custom_handshaker")
    for parameters in config.reader.all(TlsParameters):
        for name in ("tls_minimum_protocol_version", "tls_maximum_protocol_version"):
            if getattr(parameters, name) in _OLD:
                yield config.place(parameters, name), f"{name} is below TLS 1.2."


@rule(
    "metrics-filter",
    why="It may change a path after its route was chosen, up to the whole of the admin"
    " interface.",
    mend="Have only the router there.",
)
def metrics_filter(config: Config) -> Iterator[Problem]:
    """Look at the doors of the admin interface."""
    for door in config.leading:
        if door in config.gateways:
            continue
        for each in door.before_router:
            yield config.place(each.message), f"There is the filter {each.name!r}."
