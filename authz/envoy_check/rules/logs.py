"""Logs: no credential and no query in them, and authz is told of every end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.core.v3 import SubstitutionFormatString
from envoy_data_plane.envoy.data.accesslog.v3 import AccessLogType as Kind
from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    HttpGrpcAccessLogConfig,
    TcpGrpcAccessLogConfig,
)
from envoy_data_plane.envoy.extensions.access_loggers.open_telemetry.v3 import (
    OpenTelemetryAccessLogConfig,
)
from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import (
    StderrAccessLog,
    StdoutAccessLog,
)
from envoy_data_plane.envoy.type.tracing.v3 import CustomTagHeader

from authz.envoy_check.doors import CHECK
from authz.envoy_check.filters import takes
from authz.envoy_check.findings import rule
from authz.envoy_check.formats import commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from betterproto2 import Message
    from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog

    from authz.envoy_check.config import Config
    from authz.envoy_check.findings import Problem

_ALLOWED, _HELD = f"{CHECK}:key_id", f"{CHECK}:slot"
# What authz must be told: by which log, of which status, and with what it had said.
_ENDS = (
    *(("authz.usage", each, (_ALLOWED,)) for each in (0, 200, 502)),
    *(("authz.usage", each, (_ALLOWED, _HELD)) for each in (0, 200, 502)),
    *(("authz.gone", each, ("gateway:request_id",)) for each in (0, 408)),
)
# Those that carry no credential, and no query.
_HEADERS = frozenset(
    {":method", ":authority", ":scheme", ":status", "host", "origin", "user-agent"}
    | {"accept", "content-type", "content-length", "content-encoding", "date", "server"}
    | {"x-request-id", "request-id", "traceparent", "tracestate", "retry-after"}
    | {"x-forwarded-for", "x-forwarded-proto", "x-envoy-external-address"}
    | {"x-envoy-upstream-service-time", "x-envoy-attempt-count"}
)
_OF_HEADERS = {
    *("REQ", "REQUEST_HEADER", "RESP", "RESPONSE_HEADER"),
    *("TRAILER", "RESPONSE_TRAILER"),
}
_HARMLESS = re.compile(
    r"(?:START_TIME|EMIT_TIME|UPSTREAM|DOWNSTREAM|RESPONSE|COMMON_DURATION|DURATION"
    r"|REQUEST_DURATION|REQUEST_TX_DURATION|ROUNDTRIP_DURATION|PROTOCOL|BYTES|CONNECTION"
    r"|GRPC_STATUS|ROUTE_NAME|VIRTUAL_CLUSTER_NAME|HOSTNAME|DYNAMIC_METADATA"
    r"|FILTER_STATE|TRACE_ID|SPAN_ID|STREAM_ID|UNIQUE_ID|ACCESS_LOG_TYPE"
    r"|REQUESTED_SERVER_NAME)(?:_[A-Z0-9_]+)?"
)
_WRITTEN = (FileAccessLog, StdoutAccessLog, StderrAccessLog)
_LOGGERS = (
    *(*_WRITTEN, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig),
    OpenTelemetryAccessLogConfig,
)
_FORMATS = ("log_format", "format", "json_format", "typed_json_format")


@rule(
    "log-leaks",
    why="Keys, and what clients write into queries, would stand in the logs.",
    mend="Print the path as %PATH(NQ:PATH)%, and no header that carries a credential.",
)
def log_leaks(config: Config) -> Iterator[Problem]:
    """Look for formats and tags that print what must not be kept."""
    for message in _printing(config):
        for text, place in config.reader.scalars(message):
            if leaked := _leaked(text):
                yield place, f"This prints {leaked}."
        if isinstance(message, _WRITTEN) and not any(
            getattr(message, name, None) for name in _FORMATS
        ):
            yield (
                config.place(message),
                "Envoy's own format prints the path with query.",
            )
    yield from _out_of_sight(config)


def _out_of_sight(config: Config) -> Iterator[Problem]:
    """Return the formats and tags that stand in no text."""
    for form in config.reader.all(SubstitutionFormatString):
        source = form.text_format_source
        if source is not None and source.inline_string is None:
            yield config.place(form), "The format is not plain text in the files."
    for tag in config.reader.all(CustomTagHeader):
        if tag.name.lower() not in _HEADERS:
            yield config.place(tag, "name"), "The tag holds a header."


def _printing(config: Config) -> Iterator[Message]:
    """Return all that has formats: logs, and what traces are told."""
    for each in config.access_logs():
        if message := config.reader.unpacked(each.typed_config):
            yield message
    for door in config.doors:
        if door.manager.tracing:
            yield door.manager.tracing
        for way in door.ways:
            if way.route.tracing:
                yield way.route.tracing


def _leaked(text: str) -> str:
    """Return what a format prints that it must not, or may."""
    found = commands(text)
    if found is None:
        return "what cannot be read"
    return next((name for name, param in found if not _may_print(name, param)), "")


def _may_print(name: str, param: str) -> bool:
    headers = set(param.lower().split("?"))
    if name in _OF_HEADERS:
        return headers <= _HEADERS
    if name == "REQ_WITHOUT_QUERY":
        return headers <= {":path", "x-envoy-original-path"}
    if name == "PATH":
        return param.partition(":")[0] == "NQ"
    return _HARMLESS.fullmatch(name) is not None


@rule(
    "log-unjudged",
    why="What it keeps of a request, and where, is not known.",
    mend="Use the loggers file, stdout, stderr, grpc or open_telemetry.",
)
def log_unjudged(config: Config) -> Iterator[Problem]:
    """Look for loggers that the rules do not know."""
    for each in config.access_logs():
        if not isinstance(config.reader.unpacked(each.typed_config), _LOGGERS):
            yield config.place(each), f"Logger {each.name!r} is not judged."


@rule(
    "usage-not-told",
    why="Tokens and costs would not be counted, and slots of a key not be given back.",
    mend="Keep the loggers authz.usage and authz.gone of envoy/listener.yaml.",
)
def usage_not_told(config: Config) -> Iterator[Problem]:
    """Look for requests whose end authz is not told."""
    for door in config.gateways:
        for log, status, said in _ENDS if door.full_checks else ():
            if not any(
                takes(each.filter, status, said, Kind.DownstreamEnd)
                for each in door.manager.access_log
                if _log_name(config, each) == log
            ):
                place = config.place(door.manager, "access_log")
                yield place, f"No {log} surely takes the status {status} with {said}."
                break


def _log_name(config: Config, each: AccessLog) -> str:
    message = config.reader.unpacked(each.typed_config)
    if isinstance(message, HttpGrpcAccessLogConfig) and message.common_config:
        return message.common_config.log_name
    return ""


@rule(
    "log-headers",
    why="A header may carry a credential, and entries are kept.",
    mend="Take additional_…_to_log away; what authz needs stands in the metadata.",
)
def log_headers(config: Config) -> Iterator[Problem]:
    """Look for headers that travel with the entries."""
    names = (
        *("additional_request_headers_to_log", "additional_response_headers_to_log"),
        "additional_response_trailers_to_log",
    )
    for each in config.access_logs():
        message = config.reader.unpacked(each.typed_config)
        if isinstance(message, HttpGrpcAccessLogConfig):
            yield from config.filled(message, *names)
