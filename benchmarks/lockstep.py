"""Both ends of a stream in one process, which says each line when the last arrived.

So no two lines ever wait in Envoy together: each is a chunk and a wake-up of its own,
as tokens are, and is measured on its own.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from benchmarks.wrk import LoadFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_END = b""
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_BODY = b'{"model":"llama3.1","messages":[{"role":"user","content":"Hello, hello?"}]}'


class Upstream:
    """A model server for one stream at a time, which says what it is told to."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()

    def say(self, line: bytes) -> None:
        """Send a line as a chunk in answer to the request, now or when it comes."""
        self._lines.put_nowait(line)

    @asynccontextmanager
    async def listening(self, socket: Path) -> AsyncIterator[Upstream]:
        """Serve on a unix socket until the block ends."""
        server = await asyncio.start_unix_server(self._serve, socket)
        try:
            yield self
        finally:
            server.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # Cancelled with the run: Python 3.11 would report that as a fault.
        ended = (EOFError, ConnectionError, asyncio.CancelledError)
        try:
            with suppress(*ended):
                while True:
                    await _read_request(reader)
                    await self._answer(writer)
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        head = _HEAD
        while (line := await self._lines.get()) != _END:
            writer.write(head + _chunk(line))
            head = b""
        writer.write(_chunk(_END))


class Conversation:
    """A kept-alive connection of a client, and the upstream at its other end.

    Its methods raise LoadFailed when anything else than the very line arrives.
    """

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        upstream: Upstream,
        key: str,
    ) -> None:
        self._reader, self._writer = client
        self._upstream = upstream
        self._request = (
            b"POST /api/chat HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\nauthorization: Bearer %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (key.encode(), len(_BODY), _BODY)
        )

    async def open(self, line: bytes) -> None:
        """Ask, and return when the first line has come; it waits for the request."""
        self._upstream.say(line)
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            msg = f"answered by {head.splitlines()[0].decode()}"
            raise LoadFailed(msg)
        await self._expect(line)

    async def pass_on(self, line: bytes) -> None:
        """Send one more line through."""
        self._upstream.say(line)
        await self._expect(line)

    async def end(self) -> None:
        """End the answer; the connection is then free for the next."""
        await self.pass_on(_END)

    async def _expect(self, line: bytes) -> None:
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        if await self._reader.readexactly(size + 2) != line + b"\r\n":
            msg = "a line did not arrive as the one chunk that it was sent as"
            raise LoadFailed(msg)


@asynccontextmanager
async def conversation(
    port: int, upstream: Upstream, key: str
) -> AsyncIterator[Conversation]:
    """Connect to a port of this machine for the length of the block.

    Raises LoadFailed if the connection, or a time limit in the block, ends it early.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Conversation((reader, writer), upstream, key)
    except (OSError, EOFError) as error:
        msg = f"a stream broke off: {error!r}"
        raise LoadFailed(msg) from error
    finally:
        writer.close()


async def _read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _CONTENT_LENGTH.search(head)
    await reader.readexactly(int(length[1]) if length else 0)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
