"""Clients of raw bytes: HTTP/1.1 as typed, HTTP/2 without a library's scruples."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Headers = "Sequence[tuple[str, str]]"
TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; ``status`` 0 stands for a connection or stream without one."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    ended: str = ""

    def all(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for key, value in self.headers if key.lower() == name]

    def header(self, name: str) -> str | None:
        """Return the one value of a header; None if it is not there."""
        values = self.all(name)
        assert len(values) < 2, f"{name}: {values}"
        return values[0] if values else None

    @property
    def error(self) -> dict[str, Any]:
        """The error object of the body, which has nothing beside it."""
        parsed = json.loads(self.body)
        assert set(parsed) == {"error"}
        return dict(parsed["error"])


async def http1(port: int, *parts: bytes, head: bool = False) -> Answer:
    """Send bytes, part by part, and read one response to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await read_answer(reader, head=head)
    except (ConnectionError, asyncio.IncompleteReadError):
        return Answer(0, ended="closed")
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def read_answer(reader: asyncio.StreamReader, *, head: bool = False) -> Answer:
    """Read one response of HTTP/1.1."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
    pairs = (line.partition(":") for line in lines if line)
    headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
    answer = Answer(int(first.split(" ")[1]), headers)
    if head or answer.status in {204, 304}:
        return answer
    return Answer(answer.status, headers, *await _read_body(reader, answer))


async def _read_body(reader: asyncio.StreamReader, answer: Answer) -> tuple[bytes, str]:
    body = b""
    try:
        if answer.header("transfer-encoding") == "chunked":
            while size := int(await reader.readline() or b"-", 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        elif length := answer.header("content-length"):
            body = await reader.readexactly(int(length))
        else:
            body = await reader.read()
    except (ValueError, asyncio.IncompleteReadError, ConnectionError):
        return body, "broken off"
    return body, ""


async def http2(
    port: int, headers: Sequence[tuple[str, str]], body: bytes = b""
) -> Answer:
    """Send one request on a new HTTP/2 connection, checked by nobody."""
    async with Http2(port) as client:
        return await client.ask(headers, body)


class Http2:
    """One HTTP/2 connection with prior knowledge."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )

    async def __aenter__(self) -> Http2:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port
        )
        self._h2.initiate_connection()
        await self._flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def ask(
        self, headers: Sequence[tuple[str, str]], body: bytes = b""
    ) -> Answer:
        """Send one request and read its response, reset or end of connection."""
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, list(headers), end_stream=not body)
        if body:
            self._h2.send_data(stream, body, end_stream=True)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._flush()
                return await self._read(stream)
        except ConnectionError:
            return Answer(0, ended="connection closed")

    async def flood(
        self,
        headers: Sequence[tuple[str, str]],
        size: int,
        streams: int,
        watch: Callable[[], None],
    ) -> set[str]:
        """Upload on many streams at once, all that flow control lets through.

        Calls ``watch`` after every step; returns the statuses of all streams.
        """
        left = {}
        for _ in range(streams):
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, list(headers))
            left[stream] = size
        statuses: dict[int | None, str] = {}
        async with asyncio.timeout(TIMEOUT_S):
            while len(statuses) < streams:
                sent = self._send_what_fits(left)
                await self._flush()
                for event in self._h2.receive_data(await self._arrived(wait=not sent)):
                    if isinstance(event, h2.events.ResponseReceived):
                        fields = {str(k): str(v) for k, v in event.headers or ()}
                        statuses[event.stream_id] = fields[":status"]
                    elif isinstance(event, h2.events.StreamReset):
                        left.pop(event.stream_id or 0, None)
                watch()
        return set(statuses.values())

    def _send_what_fits(self, left: dict[int, int]) -> int:
        sent = 0
        for stream, remaining in left.items():
            window = self._h2.local_flow_control_window(stream)
            size = min(remaining, window, self._h2.max_outbound_frame_size)
            if size:
                self._h2.send_data(stream, b" " * size)
                left[stream] = remaining - size
                sent += size
        return sent

    async def _arrived(self, *, wait: bool) -> bytes:
        if wait:
            return await self._reader.read(65536)
        try:
            async with asyncio.timeout(0):
                return await self._reader.read(65536)
        except TimeoutError:
            return b""

    async def _read(self, stream: int) -> Answer:
        headers: list[tuple[str, str]] = []
        body = b""
        while data := await self._reader.read(65536):
            for event in self._h2.receive_data(data):
                match event:
                    case h2.events.ConnectionTerminated():
                        return Answer(0, ended="connection closed")
                    case h2.events.ResponseReceived(stream_id=of) if of == stream:
                        headers = [(str(k), str(v)) for k, v in event.headers or ()]
                    case h2.events.DataReceived(stream_id=of) if of == stream:
                        body += event.data or b""
                        size = event.flow_controlled_length or 0
                        self._h2.acknowledge_received_data(size, stream)
                    case h2.events.StreamReset(stream_id=of) if of == stream:
                        return _h2_answer(headers, body, "stream reset")
                    case h2.events.StreamEnded(stream_id=of) if of == stream:
                        return _h2_answer(headers, body, "")
            await self._flush()
        return Answer(0, ended="connection closed")

    async def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
        await self._writer.drain()


def _h2_answer(headers: list[tuple[str, str]], body: bytes, ended: str) -> Answer:
    if not headers:
        return Answer(0, ended=ended)
    return Answer(int(dict(headers)[":status"]), tuple(headers[1:]), body, ended)
