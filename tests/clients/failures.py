"""Making a client fail in every way that it should be able to report."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from authz.core.credential import mint
from tests import rows
from tests.clients.counting import counting
from tests.rows import Row
from tests.upstream import RawUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.clients.counting import Line
    from tests.gateway import Gateway, Standin

REQUEST_ID = "6f1b9f4e-1f0a-4a57-9c4c-2f3f1f9b0c11"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
LIMITED = Row(429, "rate_limited", "Too many requests.", {"retry-after": "1"})
ROWS = [rows.UNAUTHORIZED, rows.MODEL, rows.NO_MODEL, LIMITED, rows.UNAVAILABLE]


@asynccontextmanager
async def failing(
    gateway: Gateway[Standin], row: Row
) -> AsyncIterator[tuple[Line, str, str]]:
    """Give a line on which a chat ends in this row, the key and the model to use."""
    key = await gateway.new_key("llama3.1,mistral")
    model = "llama3.1"
    match row.status:
        case 401:
            key = mint(b"never issued".ljust(32))
        case 403:
            model = "qwen3:8b"
        case 404:
            model = "mistral"
        case 503:
            await gateway.upstream.behave(status=503)
    async with limited() as limited_port:
        port = limited_port if row is LIMITED else gateway.port
        async with counting(port) as line:
            yield line, key, model


@asynccontextmanager
async def limited() -> AsyncIterator[int]:
    """Answer everything with the row of 429, which needs a key with limits."""
    error = f'"code":"{LIMITED.code}","message":"{LIMITED.message}"'
    body = f'{{"error":{{{error},"request_id":"{REQUEST_ID}"}}}}'
    head = (
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n"
        f"x-request-id: {REQUEST_ID}\r\nrequest-id: {REQUEST_ID}\r\n"
        f"retry-after: 1\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    answering = RawUpstream([(head + body).encode()])
    server = await asyncio.start_server(answering.serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
