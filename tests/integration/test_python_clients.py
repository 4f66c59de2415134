"""The Python clients as people use them, against the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ollama
import openai
import pytest

if TYPE_CHECKING:
    from tests.gateway import Gateway, Standin

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


async def test_ollama_chats_and_streams(gateway: Gateway[Standin]) -> None:
    key = await gateway.new_key("llama3.1")
    headers = {"Authorization": f"Bearer {key}"}
    async with ollama.AsyncClient(host=gateway.url, headers=headers) as client:
        answer = await client.chat("llama3.1", HELLO)
        assert answer.message.content
        stream = await client.chat("llama3.1", HELLO, stream=True)
        parts = [part async for part in stream]
        assert "".join(part.message.content or "" for part in parts)
        assert parts[-1].done
        assert (await client.show("llama3.1")).details


async def test_ollama_shows_why_it_was_refused(gateway: Gateway[Standin]) -> None:
    async with ollama.AsyncClient(host=gateway.url) as client:
        with pytest.raises(ollama.ResponseError) as refused:
            await client.chat("llama3.1", HELLO)
    assert refused.value.status_code == 401
    assert "A valid API key is required." in str(refused.value)


async def test_openai_chats_and_streams(gateway: Gateway[Standin]) -> None:
    key = await gateway.new_key("llama3.1")
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key) as client:
        chat = client.chat.completions
        answer = await chat.create(model="llama3.1", messages=HELLO)
        assert answer.choices[0].message.content
        stream = await chat.create(model="llama3.1", messages=HELLO, stream=True)
        parts = [part.choices[0].delta.content or "" async for part in stream]
        assert "".join(parts) == answer.choices[0].message.content


async def test_openai_raises_the_error_of_the_row_once(
    gateway: Gateway[Standin],
) -> None:
    key = await gateway.new_key("llama3.1")
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key) as client:
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await client.chat.completions.create(model="qwen3:8b", messages=HELLO)
    assert refused.value.code == "model_not_allowed"
    assert refused.value.request_id == refused.value.response.headers["x-request-id"]
