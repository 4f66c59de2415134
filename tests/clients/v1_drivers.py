"""The packages that speak OpenAI's and Anthropic's routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.clients.driver import (
    CHAT_MODEL,
    CITY,
    EMBEDDING_MODEL,
    HELLO,
    TOOL,
    WEATHER,
    Driver,
    LangChainDriver,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class OpenAI(Driver):
    """The `openai` package, chat completions."""

    def open(self) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key)
        self.closing.push_async_callback(self.client.close)

    async def models(self) -> list[str]:
        return [model.id async for model in self.client.models.list()]

    async def show(self) -> object:
        return (await self.client.models.retrieve(CHAT_MODEL)).id

    async def chat(self, model: str = CHAT_MODEL) -> str:
        chat = self.client.chat.completions
        answer = await chat.create(model=model, messages=HELLO)
        return answer.choices[0].message.content or ""

    async def stream(self, model: str = CHAT_MODEL) -> AsyncIterator[str]:
        chat = self.client.chat.completions
        parts = await chat.create(model=model, messages=HELLO, stream=True)
        async with parts:
            async for part in parts:
                yield part.choices[0].delta.content or ""

    async def tool(self) -> tuple[str, object]:
        chat = self.client.chat.completions
        answer = await chat.create(model=CHAT_MODEL, messages=HELLO, tools=[TOOL])
        call = (answer.choices[0].message.tool_calls or [])[0]
        assert call.type == "function"
        return call.function.name, call.function.arguments

    async def embed(self) -> list[float]:
        answer = await self.client.embeddings.create(
            model=EMBEDDING_MODEL, input="Hello"
        )
        return answer.data[0].embedding


class OpenAIResponses(OpenAI):
    """The `openai` package, responses."""

    async def chat(self, model: str = CHAT_MODEL) -> str:
        answer = await self.client.responses.create(model=model, input="Hello")
        return answer.output_text

    async def stream(self, model: str = CHAT_MODEL) -> AsyncIterator[str]:
        events = await self.client.responses.create(
            model=model, input="Hello", stream=True
        )
        async with events:
            async for event in events:
                if event.type == "response.output_text.delta":
                    yield event.delta

    async def tool(self) -> tuple[str, object]:
        declared: Any = {"type": "function", "strict": False, **WEATHER}
        answer = await self.client.responses.create(
            model=CHAT_MODEL, input="Hello", tools=[declared]
        )
        (call,) = answer.output
        assert call.type == "function_call"
        return call.name, call.arguments


class Anthropic(Driver):
    """The `anthropic` package."""

    def open(self) -> None:
        self.client = anthropic.AsyncAnthropic(base_url=self.url, api_key=self.key)
        self.closing.push_async_callback(self.client.close)

    async def models(self) -> list[str]:
        return [model.id async for model in self.client.models.list()]

    async def chat(self, model: str = CHAT_MODEL) -> str:
        answer = await self.client.messages.create(
            model=model, messages=HELLO, max_tokens=100
        )
        (block,) = answer.content
        assert block.type == "text"
        return block.text

    async def stream(self, model: str = CHAT_MODEL) -> AsyncIterator[str]:
        async with self.client.messages.stream(
            model=model, messages=HELLO, max_tokens=100
        ) as parts:
            async for text in parts.text_stream:
                yield text

    async def tool(self) -> tuple[str, object]:
        declared: Any = {"name": "weather", "description": "", "input_schema": CITY}
        answer = await self.client.messages.create(
            model=CHAT_MODEL, messages=HELLO, max_tokens=100, tools=[declared]
        )
        (block,) = answer.content
        assert block.type == "tool_use"
        return block.name, block.input


class LangChainOpenAI(LangChainDriver):
    """`ChatOpenAI` and `OpenAIEmbeddings` of `langchain-openai`."""

    def open(self) -> None:
        client = httpx2.AsyncClient()
        self.closing.push_async_callback(client.aclose)
        self.settings: dict[str, Any] = {
            "base_url": f"{self.url}/v1",
            "api_key": self.key,
            "http_async_client": client,
        }

    def model(self, name: str) -> ChatOpenAI:
        return ChatOpenAI(model=name, **self.settings)

    async def embed(self) -> list[float]:
        # Else it sends OpenAI's token numbers, for which it fetches a table.
        model = OpenAIEmbeddings(
            model=EMBEDDING_MODEL, check_embedding_ctx_length=False, **self.settings
        )
        return await model.aembed_query("Hello")
