"""The Process call: an answer that lists models is cut down to the key's.

What the key may use comes with the request, from Check. Rule: what cannot be
read is not shown.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog
from google.protobuf.json_format import MessageToDict

from authz.core.allowlist import compiled
from authz.core.lists import cut_list
from authz.pb import external_processor_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from authz.core.allowlist import Allowlist

# Where Envoy keeps what Check said; listener.yaml forwards it.
_VERDICT = "envoy.filters.http.ext_authz"

_UPSTREAM = "x-envoy-upstream-service-time"

# What may stay of the headers; others could tell the size or digest of the whole,
# or the model server's clock.
_HARMLESS = frozenset(
    {":status", _UPSTREAM, "content-type", "x-request-id", "request-id"}
)

# Less than Envoy waits: with work left it would hear nothing.
_LONGEST_S = 0.8


def _set(key: str, value: bytes) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(
        header=pb.HeaderValue(key=key, raw_value=value),
        append_action=2,  # HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    )


def _error(status: bytes) -> pb.CommonResponse:
    """Make it an error of the model server, for gateway.lua to put in our words."""
    return pb.CommonResponse(
        header_mutation=pb.HeaderMutation(set_headers=[_set(":status", status)]),
        body_mutation=pb.BodyMutation(body=b""),
    )


_UNCHANGED = pb.CommonResponse()
_FAILED = _error(b"502")
_TOO_SLOW = _error(b"503")
# gateway.lua goes by the length: no body comes that it could replace.
_EMPTY = pb.CommonResponse(
    header_mutation=pb.HeaderMutation(
        set_headers=[_set(":status", b"502"), _set("content-length", b"0")]
    )
)

log = structlog.get_logger()


class ModelLists:
    """envoy.service.ext_proc.v3.ExternalProcessor/Process."""

    def __init__(self, longest_s: float = _LONGEST_S) -> None:
        self._longest_s = longest_s
        # A long list takes as long as many checks: in a thread it does not stop
        # them, and one at a time they do not starve.
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def process(
        self, messages: AsyncIterator[pb.ProcessingRequest], _context: object
    ) -> AsyncIterator[pb.ProcessingResponse]:
        """Answer the headers of one response and then, if it has one, its body."""
        is_list = False
        async for message in messages:
            if message.HasField("response_headers"):
                headers = _read_headers(message.response_headers)
                is_list = _is_list(headers)
                response = _begin(headers) if is_list else _UNCHANGED
                yield pb.ProcessingResponse(
                    response_headers=pb.HeadersResponse(response=response)
                )
            else:
                response = await self._cut(message) if is_list else _UNCHANGED
                yield pb.ProcessingResponse(
                    response_body=pb.BodyResponse(response=response)
                )

    async def _cut(self, message: pb.ProcessingRequest) -> pb.CommonResponse:
        deadline = time.monotonic() + self._longest_s
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _cut, message, deadline)


def _read_headers(headers: pb.HttpHeaders) -> dict[str, bytes]:
    return {field.key: field.raw_value for field in headers.headers.headers}


def _is_list(headers: dict[str, bytes]) -> bool:
    """Tell a success of the model server from errors; gateway.lua sees to those.

    Only the model server's answers have that header; denials pass here too.
    """
    return _UPSTREAM in headers and headers[":status"].startswith(b"2")


def _begin(headers: dict[str, bytes]) -> pb.CommonResponse:
    """Answer the headers of a list; one without a body sends no other message.

    In answer to a HEAD the length is that of the list, or unknown.
    """
    if headers[":status"] == b"204" or headers.get("content-length") == b"0":
        log.warning("model_list_empty")
        return _EMPTY
    return pb.CommonResponse(
        header_mutation=pb.HeaderMutation(
            set_headers=[_set("content-type", b"application/json")],
            remove_headers=sorted(headers.keys() - _HARMLESS),
        )
    )


def _cut(message: pb.ProcessingRequest, deadline: float) -> pb.CommonResponse:
    verdict = MessageToDict(message.metadata_context.filter_metadata[_VERDICT])
    endpoint = verdict.get("endpoint", "")
    allowed = compiled(tuple(verdict.get("models", ())))
    try:
        body = cut_list(endpoint, message.response_body.body, _until(deadline, allowed))
    except TimeoutError:
        log.warning("model_list_too_slow", endpoint=endpoint)
        return _TOO_SLOW
    if body is None:
        log.warning("model_list_unreadable", endpoint=endpoint)
        return _FAILED
    return pb.CommonResponse(body_mutation=pb.BodyMutation(body=body))


def _until(deadline: float, allowed: Allowlist) -> Callable[[str], bool]:
    """Many names times many patterns with many stars have no end that matters."""

    def allows(name: str) -> bool:
        if time.monotonic() >= deadline:
            raise TimeoutError
        return allowed.allows(name)

    return allows
