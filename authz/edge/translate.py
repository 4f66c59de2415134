"""Between Envoy's messages and the core's values. Pure.

Verdicts are serialised once per distinct one and kept: the request id in a
client's answer is Envoy's work, so nothing in them differs between requests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from authz.core.allowlist import EVERYTHING
from authz.core.lists import LISTS
from authz.core.model import Code, Deny, Request
from authz.edge import wire
from authz.pb import external_auth_pb2 as pb

if TYPE_CHECKING:
    from authz.core.allowlist import Allowlist
    from authz.core.model import Decision

CREDENTIAL_HEADERS = ("authorization", "x-api-key")
RETRY_AFTER_S = 1

# google.rpc.Code; Envoy only asks whether it is zero.
_OK = 0
_PERMISSION_DENIED = 7

_CHALLENGE = 'Bearer realm="api"'
_SERVER_ERROR = 500


def request_of(message: bytes) -> Request:
    """Read a CheckRequest; what it lacks is empty and is denied as such."""
    check, body = wire.parse(message)
    http = check.attributes.request.http
    headers = dict(http.headers)
    return Request(
        method=http.method,
        path=http.path,
        headers=headers,
        body=body,
        headers_only=check.attributes.context_extensions.get("phase") == "headers",
        # Where proxies stand in front, the other end of the connection is one of
        # them, and the header has whom Envoy takes for the client. Envoy overwrites
        # what a client sends of that name.
        source=headers.get("x-envoy-external-address")
        or check.attributes.source.address.socket_address.address,
    )


def response_of(decision: Decision) -> bytes:
    """Return the serialised CheckResponse of a verdict."""
    if isinstance(decision, Deny):
        return _denied(decision)
    allowed = _allowed(
        decision.key.id,
        decision.key.owner,
        decision.endpoint,
        decision.model,
        decision.final,
    )
    if decision.final and decision.endpoint in LISTS:
        return allowed + _shown(decision.key.models)
    return allowed


@lru_cache(maxsize=4096)
def _allowed(
    key_id: str, owner: str, endpoint: str, model: str | None, final: bool
) -> bytes:
    response = pb.CheckResponse(status=pb.RpcStatus(code=_OK))
    response.ok_response.SetInParent()
    if final:
        response.ok_response.headers_to_remove.extend(CREDENTIAL_HEADERS)
    metadata = {"key_id": key_id, "owner": owner, "endpoint": endpoint}
    if model is not None:
        metadata["model"] = model
    response.dynamic_metadata.update(metadata)
    return response.SerializeToString()


def _shown(models: Allowlist) -> bytes:
    """Return what model_list.py needs, to stand behind a serialised verdict.

    Two parts of one message on the wire are merged. Not kept: patterns are many.
    """
    patterns = [EVERYTHING] if models.everything else models.patterns
    more = pb.CheckResponse()
    more.dynamic_metadata.update({"models": list(patterns)})
    return more.SerializeToString()


@lru_cache(maxsize=1024)
def _denied(deny: Deny) -> bytes:
    code = deny.code
    response = pb.CheckResponse(
        status=pb.RpcStatus(code=_PERMISSION_DENIED),
        denied_response=pb.DeniedHttpResponse(
            status=pb.HttpStatus(code=code.status),
            headers=[
                pb.HeaderValueOption(header=pb.HeaderValue(key=key, value=value))
                for key, value in _headers(deny).items()
            ],
        ),
    )
    metadata = {"code": code.code, "message": code.message, "reason": deny.reason.value}
    if deny.parameter:
        metadata["parameter"] = deny.parameter
    response.dynamic_metadata.update(metadata)
    return response.SerializeToString()


def _headers(deny: Deny) -> dict[str, str]:
    headers = {}
    if deny.code.status < _SERVER_ERROR:
        headers["x-should-retry"] = "false"
    if deny.code is Code.UNAUTHORIZED:
        headers["www-authenticate"] = _CHALLENGE
    if deny.code is Code.ENDPOINT_NOT_ALLOWED:
        headers["www-authenticate"] = f'{_CHALLENGE}, error="insufficient_scope"'
    if deny.code is Code.METHOD_NOT_ALLOWED:
        headers["allow"] = ", ".join(deny.methods)
    if deny.code is Code.UNAVAILABLE:
        headers["retry-after"] = str(RETRY_AFTER_S)
    return headers
