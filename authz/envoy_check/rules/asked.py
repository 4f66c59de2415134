"""Who is asked: authz, by a way that nobody else can read or take over, in time."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    HttpGrpcAccessLogConfig,
    TcpGrpcAccessLogConfig,
)
from envoy_data_plane.envoy.extensions.access_loggers.open_telemetry.v3 import (
    OpenTelemetryAccessLogConfig,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ExternalProcessor
from envoy_data_plane.envoy.extensions.filters.http.ratelimit.v3 import RateLimit
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    UpstreamTlsContext,
)

from authz.envoy_check.findings import rule
from authz.envoy_check.tls import checks_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from betterproto2 import Message
    from envoy_data_plane.envoy.config.cluster.v3 import Cluster
    from envoy_data_plane.envoy.config.core.v3 import Address, GrpcService
    from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher

    from authz.envoy_check.config import Config
    from authz.envoy_check.findings import Place, Problem

_OVER_GRPC = (
    *(HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig),
    OpenTelemetryAccessLogConfig,
)
# Here anybody may put a socket in the place of another.
_EVERYBODYS = ("/tmp/", "/var/tmp/", "/dev/shm/")  # noqa: S108
_LONGEST_CHECK = timedelta(seconds=30)
_HEADERS_OF_AUTHZ = (
    *("authorization", "x-api-key", "content-length", "content-encoding"),
    *("content-type", "x-request-id", "x-envoy-auth-partial-body"),
    "x-envoy-external-address",
)


@rule(
    "check-service",
    why="authz speaks gRPC, through a cluster of the files; others are not authz.",
    mend="Use grpc_service with envoy_grpc, for all routes the same.",
)
def check_service(config: Config) -> Iterator[Problem]:
    """Look for other services than the one of the cluster."""
    for _, each, settings in config.checks():
        grpc = settings.grpc_service
        if not (grpc and grpc.envoy_grpc and grpc.envoy_grpc.cluster_name):
            yield config.place(settings), f"{each.name} asks no cluster by envoy_grpc."
    for way, each, said in config.check_settings():
        if said.grpc_service or said.http_service:
            what = f"Route {way.route.name!r} has {each.name} ask somebody else."
            yield config.place(said), what


@rule(
    "check-timeout",
    why="Unset it is 200 ms, which a large body exceeds; zero waits for ever.",
    mend="Set the timeout of grpc_service to 2s.",
)
def check_timeout(config: Config) -> Iterator[Problem]:
    """Look for checks that fail too soon or never end."""
    for _, each, settings in config.checks():
        grpc = settings.grpc_service
        if grpc and not (grpc.timeout and grpc.timeout <= _LONGEST_CHECK):
            place = config.place(grpc, "timeout")
            yield place, f"The timeout of {each.name} is unset, zero or over 30s."


@rule(
    "headers-withheld",
    why="authz cannot find the key, or not tell a body that was cut or encoded.",
    mend="Name them all under allowed_headers, and none under disallowed_headers.",
)
def headers_withheld(config: Config) -> Iterator[Problem]:
    """Look for headers that authz needs and does not get."""
    for _, each, settings in config.checks():
        if settings.encode_raw_headers:
            place = config.place(settings, "encode_raw_headers")
            yield (
                place,
                f"{each.name} sends headers in a form that authz does not read.",
            )
        for name, wanted in (("allowed_headers", True), ("disallowed_headers", False)):
            listed = getattr(settings, name)
            for header in _HEADERS_OF_AUTHZ if listed else ():
                answers = {_matches(pattern, header) for pattern in listed.patterns}
                if wanted != (True in answers) or (None in answers and not wanted):
                    yield config.place(settings, name), f"authz does not get {header}."


def _matches(pattern: StringMatcher, header: str) -> bool | None:
    """Whether a pattern fits; of expressions we do not say so."""
    if pattern.exact is not None:
        return pattern.exact.lower() == header
    if pattern.prefix is not None:
        return header.startswith(pattern.prefix.lower())
    return None


@rule(
    "metadata-refused",
    why="Errors would have no code, lists would not be cut and usage not be counted.",
    mend="Take enable_dynamic_metadata_ingestion away.",
)
def metadata_refused(config: Config) -> Iterator[Problem]:
    """Look for checks whose answers are thrown away."""
    for _, each, settings in config.checks():
        if settings.enable_dynamic_metadata_ingestion is False:
            place = config.place(settings, "enable_dynamic_metadata_ingestion")
            yield place, f"{each.name} drops what authz says about a request."


@rule(
    "authz-in-the-open",
    why="Whoever stands between reads keys and prompts, or answers for authz.",
    mend="Use a pipe (a unix socket), or UpstreamTlsContext with a trusted_ca and"
    " match_typed_subject_alt_names.",
)
def authz_in_the_open(config: Config) -> Iterator[Problem]:
    """Look for connections to authz, or its log, that others can read or take over."""
    asked: dict[str, Place] = {}
    for owner, service in _services(config):
        if service is None or not service.envoy_grpc:
            yield config.place(service or owner), "This asks no cluster by envoy_grpc."
        else:
            place = config.place(service.envoy_grpc)
            asked[service.envoy_grpc.cluster_name] = place
    for name, place in asked.items():
        cluster = config.clusters.get(name)
        if cluster is None:
            yield place, f"Cluster {name!r} is in no file given."
            continue
        private = [_private(each) for each in config.addresses(cluster)]
        if not (private and all(private)) and not _over_tls(config, cluster):
            what = f"Cluster {name!r} is no unix socket and checks no server's name."
            yield config.place(cluster), what


def _private(address: Address | None) -> bool:
    """Whether this is a socket in a folder, whose mode keeps others out."""
    pipe = address.pipe if address else None
    return (
        pipe is not None
        and pipe.path.startswith("/")
        and not pipe.path.startswith(_EVERYBODYS)
    )


def _services(config: Config) -> Iterator[tuple[Message, GrpcService | None]]:
    """Return who gets requests, lists, descriptors or entries of the log."""
    for _, _, check in config.checks():
        yield check, check.grpc_service
    for door in config.doors:
        for _, lists in door.of(ExternalProcessor):
            yield lists, lists.grpc_service
        for _, limit in door.of(RateLimit):
            service = limit.rate_limit_service
            yield limit, service.grpc_service if service else None
    for log in config.access_logs():
        message = config.reader.unpacked(log.typed_config)
        if isinstance(message, OpenTelemetryAccessLogConfig) and message.grpc_service:
            yield message, message.grpc_service
        elif isinstance(message, _OVER_GRPC):
            common = message.common_config
            yield message, common.grpc_service if common else None


def _over_tls(config: Config, cluster: Cluster) -> bool:
    socket = cluster.transport_socket
    tls = config.reader.unpacked(socket.typed_config) if socket else None
    return (
        isinstance(tls, UpstreamTlsContext)
        and not cluster.transport_socket_matches
        and not cluster.transport_socket_matcher
        and checks_names(config, tls.common_tls_context)
    )
