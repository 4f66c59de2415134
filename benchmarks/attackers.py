"""Clients that mean harm, in a process of their own, each attack from its address.

`python -m benchmarks.attackers PORT SECONDS ATTACK…` says at the end what came of it.
Nobody here has a key: what looks like one was never issued.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import secrets
import struct
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpack import Encoder

from authz.core.credential import mint
from authz.local.process import run_to_end, running

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    Behaviour = Callable[["Attacker"], Awaitable[None]]

_MIB = 1024 * 1024
_LARGE = 16 * _MIB
_SHORT = 65_536  # the most that is held of whom nobody has asked for yet
_AGAIN_AFTER_S = 0.2
_TRICKLE_S = 1.0
_STREAMS = 100  # of a connection
_RESETS_AT_ONCE = 50
_MORE_S = 20.0  # what the attackers may take longer than they were told to

# RFC 9113: types of frames, flags, a setting.
_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW = 4
_CANCEL = struct.pack(">I", 8)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Attacker:
    """Where to, from where, and what it has done and seen so far."""

    port: int
    address: str
    seen: Counter[str] = field(default_factory=Counter)

    async def connect(self) -> tuple[StreamReader, StreamWriter]:
        """Open a connection."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(self.address, 0)
        )
        self.seen["connections"] += 1
        return reader, writer

    async def hear(self, reader: StreamReader) -> None:
        """Note the status of an answer of HTTP/1.1, and wait for the end."""
        with suppress(ConnectionError):
            first = await reader.read(65_536)
            if first.startswith(b"HTTP/1.1"):
                self.seen[first[9:12].decode()] += 1
            while await reader.read(65_536):
                pass

    async def trickle(self, head: bytes, more: bytes) -> None:
        """Send a little, and then hardly anything, until the connection is closed."""
        reader, writer = await self.connect()
        writer.write(head)
        hearing = asyncio.create_task(self.hear(reader))
        while not hearing.done():
            writer.write(more)
            await asyncio.wait({hearing}, timeout=_TRICKLE_S)
        writer.close()
        await hearing

    async def upload(self, lines: bytes, chunk: bytes) -> None:
        """Send a body of 16 MiB, whatever is answered meanwhile."""
        reader, writer = await self.connect()
        hearing = asyncio.create_task(self.hear(reader))
        with suppress(ConnectionError):
            writer.write(_head(lines))
            for _ in range(_LARGE // _SHORT):
                writer.write(chunk)
                await writer.drain()
        await hearing
        writer.close()

    async def open_http2(self, window: int) -> tuple[StreamReader, StreamWriter]:
        """Open a connection whose streams let so much of an answer through."""
        reader, writer = await self.connect()
        setting = struct.pack(">HI", _INITIAL_WINDOW, window)
        writer.write(_PREFACE + _frame(_SETTINGS, payload=setting))
        return reader, writer


# --- Attacks: what one client does until it is thrown out ---------------------------


async def _send_headers_slowly(attacker: Attacker) -> None:
    await attacker.trickle(b"POST /api/chat HTTP/1.1\r\nhost: a\r\n", b"x-a: b\r\n")


async def _send_a_body_slowly(attacker: Attacker) -> None:
    lines = b"authorization: Bearer %b\r\ncontent-length: %d\r\n"
    await attacker.trickle(_head(lines % (_unknown_key(), _SHORT)), b" ")


async def _be_idle(attacker: Attacker) -> None:
    await attacker.trickle(b"", b"")


async def _reset_rapidly(attacker: Attacker) -> None:
    reader, writer = await attacker.open_http2(65_535)
    hearing = asyncio.create_task(attacker.hear(reader))
    opened = 0
    while not hearing.done():
        for stream in _ids(opened, _RESETS_AT_ONCE):
            head = _block(_unknown_key(), length=_SHORT)
            writer.write(_frame(_HEADERS, _END_HEADERS, stream, head))
            writer.write(_frame(_RESET, 0, stream, _CANCEL))
        opened += _RESETS_AT_ONCE
        await writer.drain()
        # Others send at this time, too: what counts is Envoy's time, not ours.
        await asyncio.wait({hearing}, timeout=0.05)
    attacker.seen["resets"] += opened
    writer.close()
    await hearing


async def _hoard(attacker: Attacker) -> None:
    """Hold streams whose short bodies lack a byte."""
    reader, writer = await attacker.open_http2(65_535)
    frames = [_frame(_DATA, payload=b" " * 16_383) for _ in range(4)]
    hearing = asyncio.create_task(attacker.hear(reader))
    for stream in _ids(0, _STREAMS):
        head = _block(_unknown_key(), length=_SHORT)
        writer.write(_frame(_HEADERS, _END_HEADERS, stream, head))
        for frame in frames:
            writer.write(frame[:5] + struct.pack(">I", stream) + frame[9:])
        await writer.drain()
        await asyncio.sleep(0.05)
    attacker.seen["streams"] += _STREAMS
    await hearing


async def _read_nothing(attacker: Attacker) -> None:
    """Ask without a key on many streams, and let no byte of the answers through."""
    reader, writer = await attacker.open_http2(0)
    opened = 0
    wanted = _STREAMS
    while True:
        for stream in _ids(opened, wanted):
            end = _END_HEADERS | _END_STREAM
            writer.write(_frame(_HEADERS, end, stream, _block()))
        await writer.drain()
        opened += wanted
        attacker.seen["streams"] += wanted
        wanted = 0
        async for frame_type in _frames(reader):
            wanted += frame_type == _RESET
            if wanted == _STREAMS:
                break
        else:
            return


def _uploading(lines: bytes, chunk: bytes) -> Behaviour:
    async def upload(attacker: Attacker) -> None:
        if b"%b" in lines:
            await attacker.upload(lines % _unknown_key(), chunk)
        else:
            await attacker.upload(lines, chunk)

    return upload


_LENGTH = b"content-length: %d\r\n" % _LARGE
_CHUNKED = b"transfer-encoding: chunked\r\n"
_KEY = b"authorization: Bearer %b\r\n"
_BYTES = b" " * _SHORT
_CHUNK = b"%x\r\n%b\r\n" % (_SHORT, _BYTES)

# What they do, and how many of them do it at once.
ATTACKS: Mapping[str, Sequence[tuple[Behaviour, int]]] = {
    "slow headers": [(_send_headers_slowly, 200)],
    "slow bodies": [(_send_a_body_slowly, 200)],
    "idle connections": [(_be_idle, 2000)],
    "rapid resets": [(_reset_rapidly, 4)],
    "large bodies": [
        (_uploading(_LENGTH, _BYTES), 2),
        (_uploading(_CHUNKED, _CHUNK), 2),
        (_uploading(_KEY + _LENGTH, _BYTES), 2),
        (_uploading(_KEY + _CHUNKED, _CHUNK), 2),
    ],
    "hoarded streams": [(_hoard, 10)],
    "unread answers": [(_read_nothing, 10)],
}


async def attack(
    port: int, names: Sequence[str], seconds: float, log: Path
) -> Mapping[str, Mapping[str, int]]:
    """Let them attack from another process; return what each has done and seen.

    Raises ChildDied.
    """
    words = (str(port), str(seconds), *names)
    command = (sys.executable, "-m", "benchmarks.attackers", *words)
    async with running("attackers", command, log=log) as child:
        await run_to_end(child, seconds + _MORE_S)
    return _last_words(log)


def _last_words(log: Path) -> Mapping[str, Mapping[str, int]]:
    told: dict[str, dict[str, int]] = json.loads(log.read_text().splitlines()[-1])
    return told


async def _attack_here(port: int, names: Sequence[str], seconds: float) -> None:
    attackers = {
        name: Attacker(port, f"127.0.2.{1 + list(ATTACKS).index(name)}")
        for name in names
    }
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for name, attacker in attackers.items():
                for behave, number in ATTACKS[name]:
                    for _ in range(number):
                        group.create_task(_again_and_again(behave, attacker))
    print(json.dumps({name: one.seen for name, one in attackers.items()}))  # noqa: T201


async def _again_and_again(behave: Behaviour, attacker: Attacker) -> None:
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            await behave(attacker)
        attacker.seen["ends"] += 1
        await asyncio.sleep(_AGAIN_AFTER_S)


def _head(lines: bytes) -> bytes:
    return b"POST /api/chat HTTP/1.1\r\nhost: a\r\n%b\r\n" % lines


def _unknown_key() -> bytes:
    return mint(secrets.token_bytes(32)).encode()


def _ids(opened: int, more: int) -> range:
    """Return the ids of the next streams of a client."""
    return range(2 * opened + 1, 2 * (opened + more) + 1, 2)


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    length = struct.pack(">I", len(payload))[1:]
    return length + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _block(key: bytes = b"", length: int = 0) -> bytes:
    """Return headers as a stream of any connection may send them."""
    pairs = [(":method", "POST"), (":path", "/api/chat"), (":scheme", "http")]
    pairs += [(":authority", "a")]
    if key:
        pairs += [("authorization", f"Bearer {key.decode()}")]
    if length:
        pairs += [("content-length", str(length))]
    return Encoder().encode([(n, v, True) for n, v in pairs], huffman=False)


async def _frames(reader: StreamReader) -> AsyncIterator[int]:
    """Read the types of frames; raises IncompleteReadError at the end."""
    while True:
        head = await reader.readexactly(9)
        await reader.readexactly(int.from_bytes(head[:3]))
        yield head[3]


if __name__ == "__main__":
    # That connections break is why they are here; the last line is what they say.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port, seconds, *names = sys.argv[1:]
    asyncio.run(_attack_here(int(port), names, float(seconds)))
