"""What Envoy's gRPC access log sends, written by an independent implementation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from envoy_data_plane.envoy.config.core.v3 import Metadata
from envoy_data_plane.envoy.data.accesslog import v3 as data
from envoy_data_plane.envoy.service.accesslog import v3 as envoy
from envoy_data_plane.google.protobuf import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

VERDICT = {
    "key_id": "0b7e6a52-5a4e-4c0e-9d7a-3f2b1c0d9e8f",
    "owner": "someone",
    "endpoint": "/api/chat",
    "model": "h/n/m:t",
}
LIMITED = VERDICT | {"limited": {"x-ratelimit-limit-requests": "5"}}
COUNTS = {"input_tokens": 20, "output_tokens": 300, "chunks": 9, "ended": True}
END = data.AccessLogType.DownstreamEnd
PERIODIC = data.AccessLogType.DownstreamPeriodic


def entry(
    verdict: Mapping[str, Any] | None = VERDICT,
    seen: Mapping[str, Any] = COUNTS,
    request_id: str | None = None,
    kind: data.AccessLogType = END,
    **flags: Any,  # noqa: ANN401 - bool, but for one that we do not use
) -> data.HttpAccessLogEntry:
    """One entry; without a verdict, of a client that left before it came."""
    request_id = str(uuid4()) if request_id is None else request_id
    metadata = {} if verdict is None else {"envoy.filters.http.ext_authz": verdict}
    metadata["gateway"] = {"request_id": request_id}
    metadata["authz.usage"] = seen
    return data.HttpAccessLogEntry(
        common_properties=data.AccessLogCommon(
            start_time=datetime.now(UTC),
            duration=timedelta(milliseconds=1500),
            time_to_first_downstream_tx_byte=timedelta(milliseconds=250),
            response_flags=data.ResponseFlags(**flags) if flags else None,
            metadata=Metadata(
                filter_metadata={
                    name: Struct.from_dict(dict(fields))
                    for name, fields in metadata.items()
                }
            ),
            stream_id=request_id,
            upstream_cluster="ollama",
            access_log_type=kind,
        ),
        protocol_version=data.HttpAccessLogEntryHttpVersion.HTTP11,
        request=data.HttpRequestProperties(
            request_id=request_id, path="/api/chat", request_body_bytes=41
        ),
        response=data.HttpResponseProperties(
            response_code=0 if verdict is None else 200
        ),
    )


def message(*entries: data.HttpAccessLogEntry, name: str | None = None) -> bytes:
    """Return one message of a stream; only the first one has the name of the log."""
    identifier = None
    if name is not None:
        identifier = envoy.StreamAccessLogsMessageIdentifier(log_name=name)
    return bytes(
        envoy.StreamAccessLogsMessage(
            identifier=identifier,
            http_logs=envoy.StreamAccessLogsMessageHttpAccessLogEntries(
                log_entry=list(entries)
            ),
        )
    )
