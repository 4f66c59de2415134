"""Logs: no header that can carry a credential, no path with its query."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    HttpGrpcAccessLogConfig,
)
from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import (
    StderrAccessLog,
    StdoutAccessLog,
)

from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from betterproto2 import Message

    from authz.envoy_check.config import Config
    from authz.envoy_check.findings import Problem

_SECRET = {"authorization", "proxy-authorization", "x-api-key", "cookie"}
_WITH_QUERY = {":path", "x-envoy-original-path"}
_HEADER = re.compile(
    r'%REQ\(([^)]*)\)|"REQ"\s*,\s*"param"\s*:\s*"([^"]*)"', re.IGNORECASE
)
_WRITTEN = (FileAccessLog, StdoutAccessLog, StderrAccessLog)
_FORMATS = ("log_format", "format", "json_format", "typed_json_format")
_OTHERS = re.compile(
    r"%(?:PATH(?!\(NQ\b)|QUERY_PARAMS?\b|CEL\([^%]*request\.(?:headers|path|url|query))"
)


@rule(
    "log-leaks",
    why="Keys, and what clients write into queries, would stand in the logs.",
    mend="Print the path as %PATH(NQ:PATH)%, and no header that carries a credential.",
)
def log_leaks(config: Config) -> Iterator[Problem]:
    """Look for formats and tags that print what must not be kept."""
    printing: list[Message] = [
        message
        for each in config.access_logs()
        if (message := config.reader.unpacked(each.typed_config)) is not None
    ]
    printing += [door.manager.tracing for door in config.doors if door.manager.tracing]
    for message in printing:
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


def _leaked(text: str) -> str:
    """Return what a format prints that it must not."""
    if text.lower() in _SECRET:
        return text.lower()
    for written in _HEADER.findall(text):
        names = {name.lower() for part in written for name in part.split("?")}
        if found := names & (_SECRET | _WITH_QUERY):
            return str(min(found))
    return "the path with its query, or a header" if _OTHERS.search(text) else ""


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
