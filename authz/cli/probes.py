"""Which ports are listened on in this network namespace, and who answers there."""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    Address = tuple[str, int]
    Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# Seconds, and bytes of a body. Envoy answers for itself between its other work.
_OF_ANYBODY = (1.0, 65_536)
_OF_ENVOY = (5.0, 16_777_216)
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENS = "0A"
_NO_HTTP = (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError)


def listening() -> Iterator[Address]:
    """Find what is listened on here; raises OSError where there is no /proc.

    proc_net_tcp(5): addresses are groups of four bytes in the host's order.
    """
    for table in _TABLES:
        if not table.exists() and table != _TABLES[0]:
            continue  # a machine without IPv6
        for line in table.read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _LISTENS:
                digits, _, port = local.partition(":")
                yield _address(bytes.fromhex(digits)), int(port, 16)


def _address(groups: bytes) -> str:
    words = struct.unpack(f"={len(groups) // 4}I", groups)
    return str(ip_address(struct.pack(f">{len(words)}I", *words)))


async def is_loopback(host: str, port: int) -> bool:
    """Tell whether nobody but this machine is meant; raises OSError for no address."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port)
    return all(ip_address(address[0]).is_loopback for *_, address in found)


async def is_ollama(host: str, port: int) -> bool:
    """Tell whether an Ollama answers without a key."""
    status, body = await get(host, port, "/api/version")
    with suppress(ValueError, TypeError):
        return status == HTTPStatus.OK and "version" in json.loads(body)
    return False


async def is_admin(host: str, port: int) -> bool:
    """Tell whether it is an admin interface of Envoy."""
    status, body = await get(host, port, "/server_info")
    return status == HTTPStatus.OK and b"hot_restart_version" in body


async def get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Return status and body, or (0, b"") where nobody speaks HTTP in time."""
    opening = asyncio.open_connection(host, port)
    return await _got(opening, host, path, _OF_ANYBODY)


async def get_from(socket: Path, path: str) -> tuple[int, bytes]:
    """Do the same at a socket file."""
    opening = asyncio.open_unix_connection(socket)
    return await _got(opening, "admin", path, _OF_ENVOY)


async def _got(
    opening: Coroutine[None, None, Streams],
    host: str,
    path: str,
    most: tuple[float, int],
) -> tuple[int, bytes]:
    within_s, longest = most
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(within_s), _line(opening) as (reader, writer):
            writer.write(request.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            body = bytearray()
            while len(body) < longest and (some := await reader.read(65_536)):
                body += some
            status, whole = int(head.split(maxsplit=2)[1]), bytes(body)
            if b"transfer-encoding: chunked" in head.lower():
                whole = _joined(whole)
            return status, whole
    except _NO_HTTP:
        return 0, b""


def _joined(body: bytes) -> bytes:
    """Take the chunks of RFC 9112, section 7.1, as far as they have come."""
    whole = b""
    while body:
        head, _, rest = body.partition(b"\r\n")
        length = int(head.partition(b";")[0], 16)
        whole += rest[:length]
        body = rest[length + 2 :] if length else b""
    return whole


@asynccontextmanager
async def _line(opening: Coroutine[None, None, Streams]) -> AsyncIterator[Streams]:
    reader, writer = await opening
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
