"""Replicas of `authz serve` on one PostgreSQL, called as Envoy calls them."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import grpc

from authz.edge.server import SERVICE
from authz.local.stack import free_port, running_authz
from authz.pb import external_auth_pb2 as pb
from benchmarks.wrk import LoadFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
    from pathlib import Path

PASSES = 200
_BODY = json.dumps(
    {"model": "llama3.1", "messages": [{"role": "user", "content": "Hello, hello?"}]}
).encode()


class Replica:
    """One running `authz serve`, by its process and its socket."""

    def __init__(self, pid: int, channel: grpc.aio.Channel) -> None:
        self.pid = pid
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = (
            channel.unary_unary(f"/{SERVICE}/Check")
        )

    async def check(self, message: bytes) -> int:
        """Return the status that a client would get; PASSES if it may pass."""
        answer = pb.CheckResponse.FromString(await self._call(message))
        if answer.HasField("denied_response"):
            return answer.denied_response.status.code
        return PASSES

    async def pass_through(self, message: bytes) -> None:
        """Call for what must pass. Raises LoadFailed."""
        status = await self.check(message)
        if status != PASSES:
            msg = f"a good key was answered by {status}"
            raise LoadFailed(msg)


@asynccontextmanager
async def replica(settings: Mapping[str, str], folder: Path) -> AsyncIterator[Replica]:
    """Run a replica in a folder of its own until the block ends.

    Raises ConfigError, ChildDied.
    """
    folder.mkdir(mode=0o700)  # noqa: ASYNC240 - before anything is measured
    place = {"AUTHZ_LISTEN": str(folder), "AUTHZ_WORKERS": "1"}
    metrics = ("127.0.0.1", free_port())
    async with (
        running_authz({**settings, **place}, metrics, log=folder / "log") as child,
        grpc.aio.insecure_channel(f"unix:{folder / 'authz-0.sock'}") as channel,
    ):
        yield Replica(child.process.pid, channel)


def check_message(raw_key: str) -> bytes:
    """Return the CheckRequest of a small chat."""
    message = pb.CheckRequest()
    message.attributes.source.address.socket_address.address = "127.0.0.1"
    http = message.attributes.request.http
    http.method, http.path, http.raw_body = "POST", "/api/chat", _BODY
    http.headers["content-type"] = "application/json"
    http.headers["authorization"] = f"Bearer {raw_key}"
    return message.SerializeToString()


async def at_rate(
    per_s: float, calls: Iterable[Coroutine[None, None, None]]
) -> list[float]:
    """Start calls evenly, whether the last has ended or not; return their seconds."""
    start = perf_counter()
    tasks = []
    for number, call in enumerate(calls):
        # The timers of asyncio are up to 1 ms late, so a call is timed by itself.
        await asyncio.sleep(start + number / per_s - perf_counter())
        tasks.append(asyncio.create_task(_timed(call)))
    return await asyncio.gather(*tasks)


async def _timed(call: Coroutine[None, None, None]) -> float:
    start = perf_counter()
    await call
    return perf_counter() - start
