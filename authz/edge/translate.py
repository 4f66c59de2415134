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
    from collections.abc import Mapping

    from authz.core.allowlist import Allowlist
    from authz.core.limits import Limits, Outcome
    from authz.core.model import Decision

CREDENTIAL_HEADERS = ("authorization", "x-api-key")
# In the metadata of what may pass: its key has limits, and where it stands; that
# others may wait for its slot, so that Envoy tells of its end at once; and how many
# tokens of input it was taken for, if its bytes alone do not tell.
LIMITED = "limited"
SLOT = "slot"
INPUT_ESTIMATE = "input_estimate"
RETRY_AFTER_S = 1
# With so many slots left, and nine of ten, nobody waits for one.
_MANY_SLOTS = 8

# google.rpc.Code; Envoy only asks whether it is zero.
_OK = 0
_PERMISSION_DENIED = 7

_CHALLENGE = 'Bearer realm="api"'
_SERVER_ERROR = 500


def request_of(message: bytes) -> Request:
    """Read a CheckRequest; what it lacks is empty and is denied as such."""
    attributes, cut_out = wire.parse(message)
    http = attributes.request.http
    # The library's own mapping: a copy takes longer than what is read of it.
    headers = http.headers
    body = http.raw_body if cut_out is None else cut_out
    headers_only = attributes.context_extensions.get("phase") == "headers"
    # Where proxies stand in front, the other end of the connection is one of them,
    # and the header has whom Envoy takes for the client. Envoy overwrites what a
    # client sends of that name.
    source = (
        headers.get("x-envoy-external-address")
        or attributes.source.address.socket_address.address
    )
    return Request(http.method, http.path, headers, body, headers_only, source)


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
        allowed += _shown(decision.key.models)
    if decision.input_estimate is not None:
        allowed += _more_metadata({INPUT_ESTIMATE: decision.input_estimate})
    if decision.limited is not None:
        allowed += _limited(decision.limited)
        if _is_waited_for(decision.limited, decision.key.limits):
            allowed += _SLOT_WAITED_FOR
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
    """Return what model_list.py needs. Not kept: patterns are many."""
    patterns = [EVERYTHING] if models.everything else models.patterns
    return _more_metadata({"models": list(patterns)})


def _more_metadata(metadata: Mapping[str, list[str] | int]) -> bytes:
    """Return what adds to the metadata when it stands behind a serialised verdict.

    Two parts of one message on the wire are merged.
    """
    more = pb.CheckResponse()
    more.dynamic_metadata.update(metadata)
    return more.SerializeToString()


_SLOT_WAITED_FOR = _more_metadata({SLOT: True})


def _is_waited_for(limited: Outcome, limits: Limits) -> bool:
    left, of = limited.slots_left, limits.concurrency
    return left is not None and of is not None and left < max(_MANY_SLOTS, of * 0.9)


def _limited(limited: Outcome) -> bytes:
    # Field by field, in half the time that `update` takes: it differs every time.
    more = pb.CheckResponse()
    told = more.dynamic_metadata.fields[LIMITED].struct_value
    told.SetInParent()
    for name, value in _quota_headers(limited).items():
        told.fields[name].string_value = value
    return more.SerializeToString()


def _quota_headers(limited: Outcome) -> dict[str, str]:
    """Return the headers that tell a client what is left, by OpenAI's names."""
    headers = {}
    for name, quota in (("requests", limited.requests), ("tokens", limited.tokens)):
        if quota is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(quota.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(quota.left)
            headers[f"x-ratelimit-reset-{name}"] = f"{quota.reset_s}s"
    return headers


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
    if deny.code.status < _SERVER_ERROR and deny.code is not Code.RATE_LIMITED:
        headers["x-should-retry"] = "false"
    if deny.code is Code.UNAUTHORIZED:
        headers["www-authenticate"] = _CHALLENGE
    if deny.code is Code.ENDPOINT_NOT_ALLOWED:
        headers["www-authenticate"] = f'{_CHALLENGE}, error="insufficient_scope"'
    if deny.code is Code.METHOD_NOT_ALLOWED:
        headers["allow"] = ", ".join(deny.methods)
    if deny.code is Code.UNAVAILABLE:
        headers["retry-after"] = str(RETRY_AFTER_S)
    if deny.limited is not None:
        headers["retry-after"] = str(deny.limited.retry_after_s)
        headers |= _quota_headers(deny.limited)
    return headers
