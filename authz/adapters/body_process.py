"""Reads large bodies in a process of its own, so that the event loop goes on.

What it cannot answer in time is an error, never a verdict; a process that failed
is replaced by the next body.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from authz.adapters import body_child
from authz.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from authz.core.model import Asked, Deny, Request

# Envoy gives up after 2 s. The time in the queue and that of a start count.
_TIME_S = 1.5
# The time of one body, so that the next one still has its own.
_TIME_OF_ONE_S = 0.7
# With less time left a body is not begun: to end it midway costs the process.
_LEAST_TIME_S = 0.3
# Four of the largest bodies, or many smaller ones; half of them of one key.
_MOST_BYTES = 64 * 1024 * 1024
_MOST_BYTES_OF_A_KEY = _MOST_BYTES // 2
_ANSWER_BYTES = 4096
# What an interpreter may need of the environment to start.
_PYTHONS = ("PYTHON", "PATH", "LD_LIBRARY_PATH", "LANG", "LC_")


@asynccontextmanager
async def body_process() -> AsyncIterator[BodyProcess]:
    """Yield a reader; its process ends with the block."""
    reader = BodyProcess()
    try:
        yield reader
    finally:
        await reader.close()


class _Waiting:
    """What one key has in the queue: one body at its end, the others behind that."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.bytes = 0


class BodyProcess:
    """A BodyReader; its process starts with the first body and takes one at a time.

    Keys take turns, so that one with many bodies delays the others by one of them.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._bytes = 0
        self._waiting: WeakValueDictionary[str, _Waiting] = WeakValueDictionary()
        self._child: _Child | None = None
        self._ending: set[asyncio.Future[int]] = set()

    @property
    def pid(self) -> int | None:
        """The id of the process, None where none runs."""
        return None if self._child is None else self._child.process.pid

    @property
    def queued_bytes(self) -> int:
        """How much is being read, or waits for that."""
        return self._bytes

    async def read(self, key_id: str, request: Request) -> Asked | Deny:
        """Return what ``read_asked`` says. Raises BackendError after 1.5 s at most."""
        waiting = self._waiting.setdefault(key_id, _Waiting())
        with self._counted(waiting, len(request.body)):
            try:
                async with asyncio.timeout(_TIME_S) as limit, waiting.turn, self._turn:
                    _refuse_late(limit)
                    return await self._ask(request)
            except (OSError, ValueError) as error:  # TimeoutError is an OSError
                msg = f"a large body was not read: {type(error).__name__}"
                raise BackendError(msg) from error

    async def close(self) -> None:
        """End the process and wait until it is gone."""
        self._drop()
        await asyncio.gather(*self._ending)

    @contextmanager
    def _counted(self, waiting: _Waiting, size: int) -> Iterator[None]:
        if (
            self._bytes + size > _MOST_BYTES
            or waiting.bytes + size > _MOST_BYTES_OF_A_KEY
        ):
            msg = "too many large bodies at once"
            raise BackendError(msg)
        self._bytes += size
        waiting.bytes += size
        try:
            yield
        finally:
            self._bytes -= size
            waiting.bytes -= size

    async def _ask(self, request: Request) -> Asked | Deny:
        if self._child is not None and self._child.process.poll() is not None:
            self._drop()
        try:
            async with asyncio.timeout(_TIME_OF_ONE_S):
                if self._child is None:
                    self._child = _start()
                return body_child.read_answer(await self._child.exchange(request))
        except BaseException:
            # It may be in the middle of a frame: whatever it says next would be
            # taken for the answer to another body.
            self._drop()
            raise

    def _drop(self) -> None:
        if self._child is not None:
            self._child.channel.close()
            process, self._child = self._child.process, None
            process.kill()
            loop = asyncio.get_running_loop()
            ending = loop.run_in_executor(None, process.wait)
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)


def _refuse_late(limit: asyncio.Timeout) -> None:
    left = (limit.when() or 0) - asyncio.get_running_loop().time()
    if left < _LEAST_TIME_S:
        raise TimeoutError


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    channel: socket.socket

    async def exchange(self, request: Request) -> bytes:
        """Send a frame as fast as it is taken and return the line that comes back."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.channel, body_child.write_head(request))
        await loop.sock_sendall(self.channel, request.body)
        line = b""
        while not line.endswith(b"\n"):
            part = await loop.sock_recv(self.channel, _ANSWER_BYTES)
            if not part:
                raise ConnectionResetError
            line += part
        return line


def _start() -> _Child:
    """Start a process, and not by the event loop: uvloop's fork runs grpc's handlers.

    These may end a new process before it is one of ours; Python's own vfork runs none.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                # -P: no module of the working directory.
                (sys.executable, "-P", "-m", body_child.__name__),
                stdin=theirs.fileno(),
                # It needs no settings, and some of them are secrets.
                env={k: v for k, v in os.environ.items() if k.startswith(_PYTHONS)},
                start_new_session=True,  # Ctrl-C is for the worker
            )
        except BaseException:
            ours.close()
            raise
    return _Child(process, ours)
