"""Reading bodies in tests: a whole one, or a value in the place of a field."""

from __future__ import annotations

from authz.core.body import read_body
from authz.core.model import Deny, Reason, Request

REFUSED = {Reason.BODY_NOT_STRICT_JSON, Reason.BODY_ODD_FIELD, Reason.BODY_TOO_COMPLEX}


def read(body: bytes) -> dict[str, object] | Deny:
    return read_body(Request("POST", "/api/chat", {}, body))


def read_value(value: bytes) -> object:
    """Read a value as that of a field; a Deny where the body is refused."""
    body = read(b'{"model":"m","x":' + value + b',"y":[]}')
    return body if isinstance(body, Deny) else body["x"]


def assert_refused(found: object) -> None:
    assert isinstance(found, Deny)
    assert found.reason in REFUSED
