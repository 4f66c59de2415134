"""The packages that speak Ollama's own routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import ollama
from langchain_ollama import ChatOllama, OllamaEmbeddings
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import (  # type: ignore[import-untyped]
    Ollama as LlamaIndexOllama,
)

from tests.clients.driver import (
    CHAT_MODEL,
    EMBEDDING_MODEL,
    HELLO,
    TOOL,
    Driver,
    LangChainDriver,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Ollama(Driver):
    """The `ollama` package."""

    def open(self) -> None:
        self.client = ollama.AsyncClient(self.url, headers=self.headers)
        self.closing.push_async_callback(self.client.close)

    async def models(self) -> list[str | None]:
        return [model.model for model in (await self.client.list()).models]

    async def show(self) -> object:
        return (await self.client.show(CHAT_MODEL)).details

    async def chat(self, model: str = CHAT_MODEL) -> str:
        return (await self.client.chat(model, HELLO)).message.content or ""

    async def stream(self, model: str = CHAT_MODEL) -> AsyncIterator[str]:
        async for part in await self.client.chat(model, HELLO, stream=True):
            yield part.message.content or ""

    async def tool(self) -> tuple[str, object]:
        answer = await self.client.chat(CHAT_MODEL, HELLO, tools=[TOOL])
        (call,) = answer.message.tool_calls or ()
        return call.function.name, dict(call.function.arguments)

    async def embed(self) -> list[float]:
        answer = await self.client.embed(EMBEDDING_MODEL, "Hello")
        return list(answer.embeddings[0])


class LangChainOllama(LangChainDriver):
    """`ChatOllama` and `OllamaEmbeddings` of `langchain-ollama`."""

    def open(self) -> None:
        # It never closes its connections, so the test gives it some that it can close.
        transport = httpx.AsyncHTTPTransport()
        self.closing.push_async_callback(transport.aclose)
        self.settings: dict[str, Any] = {
            "base_url": self.url,
            "client_kwargs": {"headers": self.headers},
            "async_client_kwargs": {"transport": transport},
        }

    def model(self, name: str) -> ChatOllama:
        return ChatOllama(model=name, **self.settings)

    async def embed(self) -> list[float]:
        model = OllamaEmbeddings(model=EMBEDDING_MODEL, **self.settings)
        return await model.aembed_query("Hello")


class LlamaIndex(Driver):
    """`llama-index-llms-ollama`."""

    def open(self) -> None:
        self.client = ollama.AsyncClient(self.url, headers=self.headers)
        self.closing.push_async_callback(self.client.close)

    def model(self, name: str) -> LlamaIndexOllama:
        return LlamaIndexOllama(
            model=name,
            base_url=self.url,
            headers=self.headers,
            async_client=self.client,
            context_window=4096,
        )

    async def chat(self, model: str = CHAT_MODEL) -> str:
        answer = await self.model(model).achat([ChatMessage(content="Hello")])
        return answer.message.content or ""

    async def stream(self, model: str = CHAT_MODEL) -> AsyncIterator[str]:
        parts = await self.model(model).astream_chat([ChatMessage(content="Hello")])
        async for part in parts:
            yield part.delta or ""

    async def tool(self) -> tuple[str, object]:
        model = self.model(CHAT_MODEL)
        tool = FunctionTool.from_defaults(lambda city: city, name="weather")
        answer = await model.achat_with_tools([tool], user_msg="Hello")
        (call,) = model.get_tool_calls_from_response(answer)
        return call.tool_name, call.tool_kwargs
