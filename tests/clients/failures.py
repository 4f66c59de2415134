"""Making a client fail in every way that it should be able to report."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import httpx

from authz.core.credential import mint
from tests import rows
from tests.clients.counting import counting
from tests.rows import Row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.clients.counting import Line
    from tests.gateway import Gateway, Standin

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
LIMITED = Row(429, "rate_limited", "Too many requests.", {"retry-after": "1"})
SPENT = Row(
    429,
    "budget_exceeded",
    "The token budget of this key is used up.",
    {"x-should-retry": "false"},
)
ROWS = [
    rows.UNAUTHORIZED,
    rows.MODEL,
    rows.NO_MODEL,
    LIMITED,
    SPENT,
    rows.UNAVAILABLE,
]
LIMITS = {LIMITED.code: "concurrency=1", SPENT.code: "budget=1/day"}
CHAT = {"model": "llama3.1", "messages": [{"role": "user", "content": "Hello"}]}


@asynccontextmanager
async def failing(
    gateway: Gateway[Standin], row: Row
) -> AsyncIterator[tuple[Line, str, str]]:
    """Give a line on which a chat ends in this row, the key and the model to use."""
    key = await gateway.new_key("llama3.1,mistral", limits=LIMITS.get(row.code, ""))
    model = "llama3.1"
    async with AsyncExitStack() as until_the_end:
        match row.status:
            case 401:
                key = mint(b"never issued".ljust(32))
            case 403:
                model = "qwen3:8b"
            case 404:
                model = "mistral"
            case 429:
                await until_the_end.enter_async_context(using_all(gateway, key))
            case 503:
                await gateway.upstream.behave(status=503)
        line = await until_the_end.enter_async_context(counting(gateway.port))
        yield line, key, model


@asynccontextmanager
async def using_all(gateway: Gateway[Standin], key: str) -> AsyncIterator[None]:
    """Hold the one slot of a key, and its whole budget, by a chat that goes on."""
    await gateway.upstream.behave(chunks=100_000, chunk_delay_s=0.01)
    headers = {"authorization": f"Bearer {key}"}
    async with (
        httpx.AsyncClient(base_url=gateway.url, headers=headers) as client,
        client.stream("POST", "/api/chat", json=CHAT) as answer,
    ):
        assert answer.status_code == 200
        yield
