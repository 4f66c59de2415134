"""A line to PostgreSQL or Redis that a test can cut, slow down or make hang."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit, urlunsplit

from authz.local.process import private_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_PORT = 5432
_LISTEN = b'LISTEN "'


@dataclass
class Line:
    """Forwards bytes both ways while ``open`` is set, to the server at ``target``."""

    target: str
    open: asyncio.Event = field(default_factory=asyncio.Event)
    fast: asyncio.Event = field(default_factory=asyncio.Event)
    delay_s: float = 0
    is_cut: bool = False
    lets_listen: bool = True
    lost: bytes = b""  # a statement that ends the connection instead of arriving
    last: bytes = b""  # a statement that arrives, and then the connection ends
    stranded: list[asyncio.Event] = field(default_factory=list)
    ends: list[asyncio.StreamWriter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open.set()
        self.fast.set()

    def hang(self) -> None:
        """Keep every connection and let nothing through any more."""
        self.open.clear()

    def strand(self) -> None:
        """Let nothing through on the connections there are, without ending them."""
        self.open.clear()
        self.stranded.append(self.open)
        self.open = asyncio.Event()
        self.open.set()

    def slow_down(self, delay_s: float) -> None:
        """Hold everything that is sent, either way, for a while."""
        self.delay_s = delay_s
        self.fast.clear()

    def cut(self) -> None:
        """End all connections and accept none."""
        self.is_cut = True
        self.close()

    def mend(self) -> None:
        """Be a good line again."""
        self.is_cut, self.lets_listen = False, True
        self.lost = self.last = b""
        self.open.set()
        self.fast.set()

    def close(self) -> None:
        """End all connections."""
        for stranded in self.stranded:
            stranded.set()
        for end in self.ends:
            end.transport.abort()
        self.ends.clear()

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Join a client with the server."""
        self.ends.append(writer)
        with suppress(OSError):
            if not self.is_cut:
                await self._join(reader, writer)
        writer.close()

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        answers, behind = await self._connect()
        self.ends.append(behind)
        await asyncio.gather(
            self._forward(reader, behind), self._forward(answers, writer)
        )

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.target)
        if parts.scheme == "unix":
            return await asyncio.open_unix_connection(parts.path)
        if parts.hostname:
            return await asyncio.open_connection(parts.hostname, parts.port or _PORT)
        (folder,) = parse_qs(parts.query)["host"]
        return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{_PORT}")

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        is_open = self.open
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if _LISTEN in data and not self.lets_listen:
                    break
                if self.lost and self.lost in data:
                    break
                await is_open.wait()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.fast.wait(), self.delay_s)
                writer.write(data)
                if self.last and self.last in data:
                    self.close()
                await writer.drain()
        writer.close()


@asynccontextmanager
async def line_to(database_url: str) -> AsyncIterator[tuple[Line, str]]:
    """Yield a line to a database and the URL that leads through it."""
    with private_directory("authz-line-") as folder:
        parts = urlsplit(database_url)
        user = parts.netloc.rpartition("@")[0]
        query = f"host={folder}&port={_PORT}"
        through = urlunsplit(parts._replace(netloc=f"{user}@", query=query))
        async with _serving(database_url, folder / f".s.PGSQL.{_PORT}") as line:
            yield line, through


@asynccontextmanager
async def line_to_redis(url: str) -> AsyncIterator[tuple[Line, str]]:
    """Yield a line to a Redis on a unix socket and the URL that leads through it."""
    with private_directory("authz-line-") as folder:
        async with _serving(url, folder / "redis.sock") as line:
            yield line, f"unix://{folder}/redis.sock"


@asynccontextmanager
async def _serving(target: str, socket: Path) -> AsyncIterator[Line]:
    line = Line(target)
    server = await asyncio.start_unix_server(line.serve, socket)
    try:
        yield line
    finally:
        server.close()
        line.mend()
        line.close()
