"""A model server of raw bytes: it answers each request by a script, whatever comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path


class Act(Enum):
    """What a script may do beside sending bytes."""

    CLOSE = "close"
    RESET = "reset"
    HANG = "hang"


# Bytes to send, what to wait for, or what else to do.
Step = bytes | asyncio.Event | Callable[[], Awaitable[None]] | Act

OK = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    b'content-length: 27\r\n\r\n{"ok":true,"id":"llama3.1"}',
)


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came, to the byte."""

    head: bytes
    body: bytes

    @property
    def target(self) -> str:
        """The request target of the first line."""
        return self.head.split(b" ")[1].decode("latin-1")

    @property
    def headers(self) -> dict[str, str]:
        """Header fields by lower-case name; of doubles the last."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines if line)
        return {name.lower(): value.strip() for name, _, value in pairs}


@dataclass
class RawUpstream:
    """Answers every request by ``script``; remembers what it received."""

    script: Sequence[Step] = OK
    received: list[Received] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def reset(self) -> None:
        """Forget all and answer by 200."""
        self.script = OK
        self.received.clear()

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection."""
        try:
            while True:
                self.received.append(await _read_request(reader))
                if not await self._play(writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _play(self, writer: asyncio.StreamWriter) -> bool:
        """Follow the script; False if the connection is to be closed."""
        for step in self.script:
            match step:
                case bytes():
                    writer.write(step)
                    await writer.drain()
                case asyncio.Event():
                    await step.wait()
                case Act():
                    return await self._act(step, writer)
                case _:
                    await step()
        return True

    async def _act(self, act: Act, writer: asyncio.StreamWriter) -> bool:
        if act is Act.RESET:
            writer.transport.abort()
        if act is Act.HANG:
            await self.released.wait()
        return False


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    request = Received(head, b"")
    if request.headers.get("transfer-encoding") == "chunked":
        return Received(head, await _read_chunks(reader))
    length = int(request.headers.get("content-length", "0"))
    return Received(head, await reader.readexactly(length))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


@asynccontextmanager
async def raw_upstream(socket: Path) -> AsyncIterator[RawUpstream]:
    """Listen on a unix socket until the block ends."""
    upstream = RawUpstream()
    server = await asyncio.start_unix_server(upstream.serve, socket)
    try:
        yield upstream
    finally:
        upstream.released.set()
        server.close()


def answer(
    status: int, body: bytes | str = b"", content_type: str = "application/json"
) -> tuple[bytes, ...]:
    """Return the script of a plain answer that also tries to leak by its headers."""
    raw = body.encode() if isinstance(body, str) else body
    head = (
        f"HTTP/1.1 {status} Whatever\r\ncontent-type: {content_type}\r\n"
        "server: ollama\r\nset-cookie: session=1\r\nwww-authenticate: Basic\r\n"
        "location: http://internal.example/\r\nx-request-id: theirs\r\n"
        f"x-envoy-thing: 1\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return (head.encode() + raw,)


def stream(content_type: str, parts: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the script of a chunked answer, one write a part."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n"
    head += "transfer-encoding: chunked\r\n\r\n"
    return (head.encode(), *map(chunk, parts), b"0\r\n\r\n")


def chunk(part: bytes) -> bytes:
    """Frame one chunk of RFC 9112, section 7.1."""
    return b"%x\r\n%b\r\n" % (len(part), part)
