"""The Python clients as people use them, against the gateway."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.clients.drivers import DRIVERS, driver

if TYPE_CHECKING:
    from tests.gateway import Gateway, Standin

ANSWER = "This is a stand-in for Ollama."


def able(feature: str) -> pytest.MarkDecorator:
    """Parametrize by the clients that have a feature."""
    names = [name for name, kind in DRIVERS.items() if hasattr(kind, feature)]
    return pytest.mark.parametrize("name", names)


@able("models")
async def test_lists_the_models_of_the_key(
    gateway: Gateway[Standin], name: str
) -> None:
    key = await gateway.new_key("llama3.1,qwen3:*")
    async with driver(name, gateway.url, key) as client:
        assert await client.models() == ["llama3.1:latest", "qwen3:8b"]


@able("show")
async def test_shows_a_model(gateway: Gateway[Standin], name: str) -> None:
    key = await gateway.new_key("llama3.1")
    async with driver(name, gateway.url, key) as client:
        assert await client.show()


@able("chat")
async def test_chats(gateway: Gateway[Standin], name: str) -> None:
    key = await gateway.new_key("llama3.1")
    async with driver(name, gateway.url, key) as client:
        assert await client.chat() == ANSWER


@able("stream")
async def test_streams(gateway: Gateway[Standin], name: str) -> None:
    key = await gateway.new_key("llama3.1")
    async with driver(name, gateway.url, key) as client:
        pieces = [piece async for piece in client.stream() if piece]
    assert (len(pieces), "".join(pieces)) == (6, ANSWER)


@able("tool")
async def test_calls_a_tool(gateway: Gateway[Standin], name: str) -> None:
    key = await gateway.new_key("llama3.1")
    await gateway.upstream.behave(tool_call=True)
    async with driver(name, gateway.url, key) as client:
        tool, arguments = await client.tool()
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    assert (tool, arguments) == ("weather", {"city": "Paris"})


@able("embed")
async def test_embeds(gateway: Gateway[Standin], name: str) -> None:
    key = await gateway.new_key("nomic-embed-text")
    async with driver(name, gateway.url, key) as client:
        assert await client.embed() == [0.25, -0.5, 0.75]


@able("stream")
async def test_a_client_that_leaves_ends_the_work_behind(
    gateway: Gateway[Standin], name: str
) -> None:
    key = await gateway.new_key("llama3.1")
    await gateway.upstream.behave(chunks=100_000, chunk_delay_s=0.01)
    async with driver(name, gateway.url, key) as client:
        pieces = client.stream()
        assert await anext(pieces) is not None
        await pieces.aclose()
    async with asyncio.timeout(10):
        while not (await gateway.upstream.received())[0]["left"]:
            pass
