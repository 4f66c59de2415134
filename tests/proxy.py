"""A line to PostgreSQL that a test can make hang: open, and silent."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit, urlunsplit

from authz.local.process import private_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_PORT = 5432


@dataclass
class Line:
    """Forwards bytes both ways while ``open`` is set."""

    target: str
    open: asyncio.Event = field(default_factory=asyncio.Event)
    ends: list[asyncio.StreamWriter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open.set()

    def hang(self) -> None:
        """Keep every connection and let nothing through any more."""
        self.open.clear()

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Join a client with the server."""
        behind = await self._connect()
        self.ends += [writer, behind[1]]
        await asyncio.gather(
            self._forward(reader, behind[1]), self._forward(behind[0], writer)
        )

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.target)
        if parts.hostname:
            return await asyncio.open_connection(parts.hostname, parts.port or _PORT)
        (folder,) = parse_qs(parts.query)["host"]
        return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{_PORT}")

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await reader.read(65536):
                await self.open.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def line_to(database_url: str) -> AsyncIterator[tuple[Line, str]]:
    """Yield a line to a database and the URL that leads through it."""
    line = Line(database_url)
    with private_directory("authz-line-") as folder:
        socket: Path = folder / f".s.PGSQL.{_PORT}"
        server = await asyncio.start_unix_server(line.serve, socket)
        parts = urlsplit(database_url)
        user = parts.netloc.rpartition("@")[0]
        query = f"host={folder}&port={_PORT}"
        through = urlunsplit(parts._replace(netloc=f"{user}@", query=query))
        try:
            yield line, through
        finally:
            line.open.set()
            server.close()
            for end in line.ends:
                end.close()
