"""A line to a gateway that counts the requests on it: so that retries show."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_REQUEST_LINE_END = b" HTTP/1.1\r\n"


@dataclass
class Line:
    """Forwards bytes both ways and keeps what clients sent."""

    target: int
    url: str = ""
    uploads: list[bytearray] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests clients have made."""
        return sum(upload.count(_REQUEST_LINE_END) for upload in self.uploads)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Join a client with the gateway until either leaves."""
        sent = bytearray()
        self.uploads.append(sent)
        behind = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(
            _forward(reader, behind[1], sent), _forward(behind[0], writer, bytearray())
        )


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
) -> None:
    try:
        while data := await reader.read(65536):
            kept += data
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def counting(port: int) -> AsyncIterator[Line]:
    """Yield a line to a port of this machine."""
    line = Line(port)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
