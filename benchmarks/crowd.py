"""Both ends of many streams at once, in one process and cheap: protocols, no streams.

A line carries its number and when it was said, so that a lost, doubled or late one
shows.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_BODY = b'{"model":"%b","messages":[{"role":"user","content":"Say %d lines, please."}]}'
_WANTED = re.compile(rb'"Say (\d+) lines')
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_LINE = (
    b'{"model":"llama3.1","created_at":"2025-01-01T00:00:00.000000000Z",'
    b'"message":{"role":"assistant","content":" %d %.6f"},"done":false}\n'
)
_LAST_LINE = (
    b'{"model":"llama3.1","created_at":"2025-01-01T00:00:00.000000000Z",'
    b'"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop",'
    b'"prompt_eval_count":%d,"eval_count":%d}\n'
)
_LAST_CHUNK = b"0\r\n\r\n"
_SAID = re.compile(rb'"content":" (\d+) ([\d.]+)"')
_COUNTS = re.compile(rb'"prompt_eval_count":(\d+),"eval_count":(\d+)}')

MODEL = "llama3.1"
_MOST_INPUT = 1000
_MORE_S = 60.0  # what a stream may take longer than it was said in


@dataclass(slots=True)
class Heard:
    """What a client got of one request; ``counts`` are the tokens of the last line."""

    status: int = 0
    request_id: str = ""
    lines: int = 0
    counts: tuple[int, int] | None = None
    complete: bool = False
    lags: list[float] = field(default_factory=list)


class _ModelServer(asyncio.Protocol):
    """A connection to the model server, which says as many lines as it is asked for."""

    def __init__(self, lines_per_s: float) -> None:
        self._pause_s = 1 / lines_per_s
        self._loop = asyncio.get_running_loop()
        self._request = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - for mypy
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - theirs
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, _, body = self._request.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length and len(body) == int(length[1]):
            wanted = _WANTED.search(body)
            self._request = b""
            self._transport.write(_HEAD)
            self._say(0, int(wanted[1]) if wanted else 0, self._loop.time())

    def _say(self, number: int, wanted: int, due: float) -> None:
        if number == wanted:
            counts = random.randint(1, _MOST_INPUT), wanted  # noqa: S311 - any will do
            self._transport.write(_chunk(_LAST_LINE % counts) + _LAST_CHUNK)
            return
        self._transport.write(_chunk(_LINE % (number, perf_counter())))
        due += self._pause_s
        self._timer = self._loop.call_at(due, self._say, number + 1, wanted, due)


class Client(asyncio.Protocol):
    """A client with one request; it leaves after so many lines, if it does."""

    def __init__(self, request: bytes, leave_after: int | None) -> None:
        self.heard = Heard()
        self.ended = asyncio.Event()
        self._request = request
        self._leave_after = leave_after
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - for mypy
        self._transport = transport
        transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - theirs
        """Note the end, whoever made it."""
        self.ended.set()

    def data_received(self, data: bytes) -> None:
        """Take in the lines that are whole; those of the framing are among them."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
        if self._leave_after and self.heard.lines >= self._leave_after:
            self._transport.abort()

    def _take(self, line: bytes) -> None:
        heard = self.heard
        if said := _SAID.search(line):
            heard.lags.append(perf_counter() - float(said[2]))
            # A line out of its turn counts no more, nor do those that follow.
            heard.lines += int(said[1]) == heard.lines
        elif counts := _COUNTS.search(line):
            heard.counts = int(counts[1]), int(counts[2])
        elif line.startswith(b"HTTP/1.1 "):
            heard.status = int(line.split()[1])
        elif line.startswith(b"x-request-id: "):
            heard.request_id = line.split()[1].decode()
        elif line == b"0\r":
            heard.complete = heard.counts is not None and heard.counts[1] == heard.lines


@asynccontextmanager
async def model_server(socket: Path, lines_per_s: float) -> AsyncIterator[None]:
    """Serve on a unix socket until the block ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(
        lambda: _ModelServer(lines_per_s), str(socket), backlog=1024
    )
    try:
        yield
    finally:
        server.close()


async def ask(
    port: int,
    key: str,
    lines: int,
    *,
    model: str = MODEL,
    leave_after: int | None = None,
) -> Client:
    """Ask for lines; it goes on by itself."""
    body = _BODY % (model.encode(), lines)
    request = (
        b"POST /api/chat HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        b"content-type: application/json\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (key.encode(), len(body), body)
    )
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        lambda: Client(request, leave_after), "127.0.0.1", port
    )
    return client


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
