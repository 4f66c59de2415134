"""One sample of streams: the time to the first chunk, and what each chunk costs.

The processor time is that of Envoy alone; all wall times include both ends.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING

import click

from benchmarks.listeners import (
    key_check_alone,
    router_alone,
    unbounded,
    without_script,
)
from benchmarks.lockstep import Upstream, conversation
from benchmarks.parts import new_key, starting
from benchmarks.processes import cpu_seconds
from benchmarks.report import section, spread, table
from benchmarks.subjects import ENVOY_ALONE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from benchmarks.lockstep import Conversation
    from benchmarks.parts import Proxy

GATEWAY = "gateway"
NO_SCRIPT = "without script"
KEY_CHECK = "key check alone"

FIRST_CHUNKS = 300
CHUNKS = 2000
_WARM_UP_S = 2
_MORE_S = 20.0  # what the last stream may take longer than there is time


_HEADER = (
    f"subject | CPU µs a chunk | spread | over {NO_SCRIPT}, µs | wall µs a chunk "
    f"| first chunk p50 ms | spread | p99 ms | p50 over {ENVOY_ALONE}, ms"
)


@dataclass(frozen=True, slots=True)
class StreamSample:
    """Per chunk: Envoy's processor time and the wall time, µs. First chunk: ms."""

    cpu_us: float
    wall_us: float
    first_p50_ms: float
    first_p99_ms: float


@dataclass(frozen=True, slots=True)
class Streams:
    """The samples of each subject, one a round."""

    samples: dict[str, list[StreamSample]]


async def measure_streams(rounds: int, seconds: int) -> Streams:
    """Measure all subjects in turns. Raises ConfigError, ChildDied, LoadFailed."""
    async with stream_subjects() as (subjects, upstream):
        samples: dict[str, list[StreamSample]] = {name: [] for name in subjects.proxies}
        for number in range(rounds + 1):
            for name, proxy in subjects.proxies.items():
                click.echo(f"streams, round {number}: {name}", err=True)
                length = seconds if number else _WARM_UP_S
                sample = await _measure(proxy, upstream, subjects.key, length)
                if number:
                    samples[name].append(sample)
        return Streams(samples)


async def _measure(
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


@dataclass(frozen=True, slots=True)
class StreamSubjects:
    """Envoys by name, and the key that all of them take."""

    proxies: dict[str, Proxy]
    key: str


@asynccontextmanager
async def stream_subjects() -> AsyncIterator[tuple[StreamSubjects, Upstream]]:
    """Run listener.yaml, and parts of it, before one service and one upstream.

    Raises ConfigError, ChildDied.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(_one_core())
        parts = await stack.enter_async_context(starting())
        upstream = await stack.enter_async_context(Upstream().listening(parts.upstream))
        service = await parts.service()
        socket = service.socket
        proxies = {
            GATEWAY: await parts.envoy("whole", socket, unbounded),
            NO_SCRIPT: await parts.envoy("script", socket, without_script),
            KEY_CHECK: await parts.envoy("check", socket, key_check_alone),
            ENVOY_ALONE: await parts.envoy("alone", socket, router_alone),
        }
        yield StreamSubjects(proxies, await new_key(service.database_url)), upstream


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep this process, and what it starts, on one core for the length of the block.

    Nothing of a stream in lockstep runs at once, and waking another core costs
    several times what is to be seen, and never twice the same.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def streams_section(measured: Streams) -> str:
    """Return the table of streams."""
    samples = measured.samples
    rounds = len(samples[GATEWAY])
    return section(
        "Streams",
        table(_HEADER, [_row(name, samples) for name in samples]),
        f"Medians of {rounds} rounds, as above. A sample asks {FIRST_CHUNKS} times "
        "for a first chunk, which waits for the request at the upstream, and then "
        f"for streams of {CHUNKS:,} lines of NDJSON, each said when the last has "
        "arrived: every line is a chunk of its own, and a read and a write of Envoy.",
        f"All have the same `authz serve`. `{NO_SCRIPT}` is `{GATEWAY}` less "
        f"gateway.lua; `{KEY_CHECK}` is Envoy with the check, the router and nothing "
        f"else of listener.yaml; `{ENVOY_ALONE}` has the router alone. CPU is the "
        "time that Envoy's threads ran; the wall "
        "time is a round trip and has the client and the upstream in it. All share "
        "one core, on which nothing of a stream runs at once: these are the costs of "
        "warm caches, lower than those of a stream that trickles.",
    )


def _row(name: str, samples: dict[str, list[StreamSample]]) -> Sequence[str]:
    here = _median(samples[name])
    added_us = here.cpu_us - _median(samples[NO_SCRIPT]).cpu_us
    added_ms = here.first_p50_ms - _median(samples[ENVOY_ALONE]).first_p50_ms
    return (
        name,
        f"{here.cpu_us:.1f}",
        spread([sample.cpu_us for sample in samples[name]]),
        f"{added_us:+.1f}",
        f"{here.wall_us:.0f}",
        f"{here.first_p50_ms:.2f}",
        spread([sample.first_p50_ms for sample in samples[name]]),
        f"{here.first_p99_ms:.2f}",
        f"{added_ms:+.2f}",
    )


def _median(samples: Sequence[StreamSample]) -> StreamSample:
    return StreamSample(
        cpu_us=median(sample.cpu_us for sample in samples),
        wall_us=median(sample.wall_us for sample in samples),
        first_p50_ms=median(sample.first_p50_ms for sample in samples),
        first_p99_ms=median(sample.first_p99_ms for sample in samples),
    )
