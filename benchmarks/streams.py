"""One sample of streams: the time to the first chunk, and what each chunk costs.

The processor time is that of Envoy alone; all wall times include both ends.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.lockstep import conversation
from benchmarks.processes import cpu_seconds

if TYPE_CHECKING:
    from benchmarks.lockstep import Conversation, Upstream
    from benchmarks.parts import Proxy

FIRST_CHUNKS = 300
CHUNKS = 2000
_MORE_S = 20.0  # what the last stream may take longer than there is time


@dataclass(frozen=True, slots=True)
class StreamSample:
    """Per chunk: Envoy's processor time and the wall time, µs. First chunk: ms."""

    cpu_us: float
    wall_us: float
    first_p50_ms: float
    first_p99_ms: float


async def measure_streams(
    proxy: Proxy, upstream: Upstream, key: str, seconds: int
) -> StreamSample:
    """Ask for first chunks, then for whole streams until the time is over.

    Raises LoadFailed.
    """
    until = perf_counter() + seconds
    async with (
        conversation(proxy.port, upstream, key) as client,
        asyncio.timeout(seconds + _MORE_S),
    ):
        firsts = [await _first_chunk(client) for _ in range(FIRST_CHUNKS)]
        streams = [await _stream(client, proxy.pid)]
        while perf_counter() < until:
            streams.append(await _stream(client, proxy.pid))
    percentiles = quantiles(firsts, n=100)
    chunks = len(streams) * CHUNKS
    return StreamSample(
        cpu_us=sum(cpu for cpu, _ in streams) / chunks * 1e6,
        wall_us=sum(wall for _, wall in streams) / chunks * 1e6,
        first_p50_ms=percentiles[49] * 1e3,
        first_p99_ms=percentiles[98] * 1e3,
    )


async def _first_chunk(client: Conversation) -> float:
    """Return the seconds from the request to the first chunk."""
    start = perf_counter()
    await client.open(_line(0))
    seconds = perf_counter() - start
    await client.end()
    return seconds


async def _stream(client: Conversation, pid: int) -> tuple[float, float]:
    """Return the seconds of Envoy's processor, and of the wall, for all chunks."""
    await client.open(_line(0))
    cpu, wall = cpu_seconds(pid), perf_counter()
    for number in range(CHUNKS):
        await client.pass_on(_line(number))
    costs = cpu_seconds(pid) - cpu, perf_counter() - wall
    await client.end()
    return costs


def _line(number: int) -> bytes:
    """Return a token of a model; no two are equal, for Lua keeps equal strings once."""
    return (
        b'{"model":"llama3.1","created_at":"2025-01-01T00:00:00.%09dZ",'
        b'"message":{"role":"assistant","content":" hello"},"done":false}\n' % number
    )
