"""One face for the Python clients: what people do with each, in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AsyncExitStack

    from langchain_core.language_models import BaseChatModel

CHAT_MODEL = "llama3.1"
EMBEDDING_MODEL = "nomic-embed-text"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
WEATHER = {"name": "weather", "description": "Weather of a city", "parameters": CITY}
TOOL: Any = {"type": "function", "function": WEATHER}


class Driver:
    """A client at one gateway with one key. What it cannot do it does not define."""

    def __init__(self, url: str, key: str, closing: AsyncExitStack) -> None:
        self.url = url
        self.key = key
        self.headers = {"Authorization": f"Bearer {key}"}
        self.closing = closing
        self.open()

    def open(self) -> None:
        """Make the client."""
        raise NotImplementedError

    async def chat(self, model: str = CHAT_MODEL) -> str:
        """Ask and return the answer."""
        raise NotImplementedError

    def stream(self, model: str = CHAT_MODEL) -> AsyncIterator[str]:
        """Ask and return the answer piece by piece."""
        raise NotImplementedError


class LangChainDriver(Driver):
    """What LangChain's packages have in common."""

    def model(self, name: str) -> BaseChatModel:
        """Make the chat model."""
        raise NotImplementedError

    async def chat(self, model: str = CHAT_MODEL) -> str:
        return str((await self.model(model).ainvoke("Hello")).text)

    async def stream(self, model: str = CHAT_MODEL) -> AsyncIterator[str]:
        async for part in self.model(model).astream("Hello"):
            yield str(part.text)

    async def tool(self) -> tuple[str, object]:
        bound = self.model(CHAT_MODEL).bind_tools([TOOL])
        (call,) = (await bound.ainvoke("Hello")).tool_calls
        return call["name"], call["args"]
