"""The Process call: an answer that lists models is cut down to the key's.

What the key may use comes with the request, from Check. Rule: what cannot be
read is not shown.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING

import structlog
from google.protobuf.json_format import MessageToDict

from authz.core.allowlist import Allowlist
from authz.core.lists import cut_list
from authz.pb import external_processor_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Where Envoy keeps what Check said; listener.yaml forwards it.
_VERDICT = "envoy.filters.http.ext_authz"

_UPSTREAM = "x-envoy-upstream-service-time"

# What may stay of the headers; others could tell the size or digest of the whole.
_HARMLESS = frozenset(
    {":status", _UPSTREAM, "content-type", "date", "x-request-id", "request-id"}
)

_UNCHANGED = pb.CommonResponse()
# An error of the model server, for gateway.lua to put in our words.
_FAILED = pb.CommonResponse(
    header_mutation=pb.HeaderMutation(
        set_headers=[
            pb.HeaderValueOption(
                header=pb.HeaderValue(key=":status", raw_value=b"502"),
                append_action=2,  # HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
            )
        ]
    ),
    body_mutation=pb.BodyMutation(body=b""),
)

log = structlog.get_logger()

# Compiled patterns are worth keeping, for as many keys as list models at a time.
_allowlist = lru_cache(maxsize=64)(Allowlist)


class ModelLists:
    """envoy.service.ext_proc.v3.ExternalProcessor/Process."""

    def __init__(self) -> None:
        # A long list takes as long as many checks: in a thread it does not stop
        # them, and one at a time they do not starve.
        self._turn = asyncio.Lock()

    async def process(
        self, messages: AsyncIterator[pb.ProcessingRequest], _context: object
    ) -> AsyncIterator[pb.ProcessingResponse]:
        """Answer the headers of one response and then, if it has one, its body."""
        is_list = False
        async for message in messages:
            if message.HasField("response_headers"):
                headers = _read_headers(message.response_headers)
                is_list = _is_list(headers)
                response = _without_traces(headers) if is_list else _UNCHANGED
                yield pb.ProcessingResponse(
                    response_headers=pb.HeadersResponse(response=response)
                )
            else:
                response = await self._cut(message) if is_list else _UNCHANGED
                yield pb.ProcessingResponse(
                    response_body=pb.BodyResponse(response=response)
                )

    async def _cut(self, message: pb.ProcessingRequest) -> pb.CommonResponse:
        async with self._turn:
            return await asyncio.to_thread(_cut, message)


def _read_headers(headers: pb.HttpHeaders) -> dict[str, bytes]:
    return {field.key: field.raw_value for field in headers.headers.headers}


def _is_list(headers: dict[str, bytes]) -> bool:
    """Tell a success of the model server from errors; gateway.lua sees to those.

    Only the model server's answers have that header; denials pass here too.
    """
    return _UPSTREAM in headers and headers[":status"].startswith(b"2")


def _without_traces(headers: dict[str, bytes]) -> pb.CommonResponse:
    removed = headers.keys() - _HARMLESS
    return pb.CommonResponse(header_mutation=pb.HeaderMutation(remove_headers=removed))


def _cut(message: pb.ProcessingRequest) -> pb.CommonResponse:
    verdict = MessageToDict(message.metadata_context.filter_metadata[_VERDICT])
    endpoint = verdict.get("endpoint", "")
    allowed = _allowlist(tuple(verdict.get("models", ())))
    body = cut_list(endpoint, message.response_body.body, allowed)
    if body is None:
        log.warning("model_list_unreadable", endpoint=endpoint)
        return _FAILED
    return pb.CommonResponse(body_mutation=pb.BodyMutation(body=body))
