"""What every error must look like, whatever layer answers and over which protocol."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.raw import Answer

CHALLENGE = 'Bearer realm="api"'
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LEAK = re.compile(
    rb"ollama|postgres|redis|envoy|traceback|asyncpg|sqlalchemy|grpc"
    rb"|/root|/run/|localhost|127\.0\.|internal\.example",
    re.IGNORECASE,
)
_ALLOWED_HEADERS = {
    "content-type",
    "content-length",
    "date",
    "connection",
    "x-request-id",
    "request-id",
    "x-should-retry",
    "retry-after",
    "www-authenticate",
    "allow",
    "transfer-encoding",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the error table; ``headers`` are those that only it has."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


_FINAL = {"x-should-retry": "false"}
_LATER = {"retry-after": "1"}
INVALID = Row(400, "invalid_request", "The request is not valid.", _FINAL)
TOO_LONG = Row(
    400, "context_too_long", "The input exceeds the model's context length.", _FINAL
)
UNAUTHORIZED = Row(
    401,
    "unauthorized",
    "A valid API key is required.",
    {**_FINAL, "www-authenticate": CHALLENGE},
)
ENDPOINT = Row(
    403,
    "endpoint_not_allowed",
    "This key may not use this endpoint.",
    {**_FINAL, "www-authenticate": f'{CHALLENGE}, error="insufficient_scope"'},
)
MODEL = Row(403, "model_not_allowed", "This key may not use this model.", _FINAL)
PARAMETER = Row(
    403,
    "parameter_not_allowed",
    "A parameter of the request is not allowed for this key.",
    _FINAL,
)
NOT_FOUND = Row(404, "not_found", "There is no such endpoint.", _FINAL)
NO_MODEL = Row(404, "model_not_found", "The model is not available.", _FINAL)
METHOD = Row(
    405,
    "method_not_allowed",
    "The method is not allowed here.",
    {**_FINAL, "allow": "POST"},
)
SLOW_CLIENT = Row(408, "request_timeout", "The request took too long to arrive.")
TOO_LARGE = Row(413, "payload_too_large", "The request is too large.", _FINAL)
ENCODING = Row(415, "unsupported_encoding", "The request must be plain JSON.", _FINAL)
UPGRADE = Row(426, "upgrade_required", "HTTP/1.1 or HTTP/2 is required.", _FINAL)
HEADERS = Row(431, "headers_too_large", "The request headers are too large.", _FINAL)
UPSTREAM = Row(502, "upstream_error", "The model server failed.")
UNAVAILABLE = Row(503, "unavailable", "The service is temporarily unavailable.", _LATER)
UPSTREAM_SLOW = Row(504, "upstream_timeout", "The model server took too long.")


def no_feature(feature: str) -> Row:
    """The row of a model that lacks a feature."""
    message = f"The model does not support {feature}."
    return Row(400, "feature_not_supported", message, _FINAL)


def assert_row(answer: Answer, row: Row, *, head: bool = False) -> None:
    """Compare a response with its row: status, headers, body, and nothing else."""
    assert answer.status == row.status, answer
    request_id = answer.header("x-request-id") or ""
    assert _UUID.fullmatch(request_id), answer
    assert answer.header("request-id") == request_id
    assert answer.header("content-type") == "application/json"
    assert {name for name, _ in answer.headers} <= _ALLOWED_HEADERS, answer
    for name in ("x-should-retry", "retry-after", "www-authenticate", "allow"):
        assert answer.header(name) == row.headers.get(name), name
    assert not _LEAK.search(repr(answer.headers).encode() + answer.body), answer
    if head:
        assert answer.body == b""
        return
    assert answer.error == {
        "code": row.code,
        "message": row.message,
        "request_id": request_id,
    }
