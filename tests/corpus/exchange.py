"""One case on one connection: the bytes as they are, and every answer to them."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import suppress
from dataclasses import dataclass

from tests.raw import Answer, read_answer

# Sent behind every case, without a credential: an answer to it proves that the
# connection is open and that nothing of the case is still to be completed.
PROBE = b"HEAD / HTTP/1.1\r\nhost: corpus\r\nconnection: close\r\n\r\n"

_INTERIM = re.compile(rb"HTTP/1\.1 (1\d\d)[^\r]*\r\n(?:[^\r]+\r\n)*\r\n")
_PIECES = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answers in order; ``end`` is ``open``, ``closed`` or ``silent``.

    ``probe`` is the answer to the probe, of a connection that was left open.
    """

    answers: tuple[Answer, ...]
    end: str
    probe: Answer | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """What happened, as a case writes it."""
        return (*map(_step, self.answers), self.end)


async def exchange(
    address: tuple[str, int], request: bytes, patience_s: float, *, in_pieces: bool
) -> Outcome:
    """Send a case, then the probe, and read to the end; never raises for an answer."""
    data = bytearray()
    with socket.create_connection(address, patience_s) as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(patience_s):
                await _send(connection, request, in_pieces=in_pieces)
                await _receive(connection, data)
        except TimeoutError:
            return Outcome(await _parsed(data), "silent")
    answers = await _parsed(data)
    if answers and _answers_the_probe(answers[-1]):
        return Outcome(answers[:-1], "open", answers[-1])
    return Outcome(answers, "closed")


async def _send(
    connection: socket.socket, request: bytes, *, in_pieces: bool = False
) -> None:
    loop = asyncio.get_running_loop()
    size = len(request) // _PIECES + 1 if in_pieces else len(request)
    # The other side may close as soon as it has read enough; what it said counts.
    with suppress(ConnectionError):
        for start in range(0, len(request), size):
            await loop.sock_sendall(connection, request[start : start + size])


async def _receive(connection: socket.socket, data: bytearray) -> None:
    """Read to the end of the connection; the probe goes out at the first answer."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while more := await loop.sock_recv(connection, 65536):
            if not data:
                await _send(connection, PROBE)
            data += more
            # Servers linger after their last answer until the client has closed too.
            if await _is_last(data):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)


async def _is_last(data: bytearray) -> bool:
    answers = await _parsed(data)
    return answers[-1].header("connection") == "close"


async def _parsed(data: bytearray) -> tuple[Answer, ...]:
    rest = bytes(data)
    answers: list[Answer] = []
    while rest:
        if interim := _INTERIM.match(rest):
            answers.append(Answer(int(interim[1])))
            rest = rest[interim.end() :]
            continue
        reader = asyncio.StreamReader()
        reader.feed_data(rest)
        reader.feed_eof()
        try:
            answers.append(await read_answer(reader))
        except (asyncio.IncompleteReadError, LookupError, ValueError):
            answers.append(Answer(0, ended="not HTTP"))
        rest = await reader.read()
    return tuple(answers)


def _answers_the_probe(answer: Answer) -> bool:
    """Tell an answer to HEAD, which alone is an error that has no body."""
    return answer.status >= 400 and not answer.body


def _step(answer: Answer) -> str:
    if answer.status < 400:
        return str(answer.status)
    try:
        return f"{answer.status} {answer.error['code']}"
    except (AssertionError, LookupError, TypeError, ValueError):
        return str(answer.status)
