"""The Python clients by the names of their packages."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.clients.native_drivers import LangChainOllama, LlamaIndex, Ollama
from tests.clients.v1_drivers import (
    Anthropic,
    LangChainOpenAI,
    OpenAI,
    OpenAIResponses,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.clients.driver import Driver

DRIVERS: dict[str, type[Driver]] = {
    "ollama": Ollama,
    "openai": OpenAI,
    "openai responses": OpenAIResponses,
    "anthropic": Anthropic,
    "langchain-ollama": LangChainOllama,
    "langchain-openai": LangChainOpenAI,
    "llama-index-llms-ollama": LlamaIndex,
}


@asynccontextmanager
async def driver(name: str, url: str, key: str) -> AsyncIterator[Any]:
    """Give a client and close what it opened."""
    async with AsyncExitStack() as closing:
        yield DRIVERS[name](url, key, closing)
