"""A flood of unknown keys, and what good keys from other addresses notice of it.

`python -m benchmarks.strangers` measures this alone.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import quantiles
from time import perf_counter
from typing import TYPE_CHECKING

import click
import grpc

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.core.credential import mint
from authz.core.model import Scope
from authz.issuing import issue
from authz.local.postgres import embedded_postgres
from authz.local.process import private_directory
from authz.local.redis import embedded_redis
from authz.pb import external_auth_pb2 as pb
from benchmarks.command import outcome_of
from benchmarks.replicas import Replica, check_message, replica
from benchmarks.report import document
from benchmarks.surroundings import surroundings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from pathlib import Path

    from authz.adapters.postgres import Connection

OFFERED_PER_S = 10_000
SOURCES = (1, 1000)
GOOD_PER_S = 50
GOOD_KEYS = 1000
PER_SOURCE_PER_S = 100  # AUTHZ_UNKNOWN_KEYS_PER_S where it is not set
GOAL_MS = 20

_GOOD_SOURCES = 50
_UNDER_WAY = 4  # of one source, when it has had its share
_AT_ONCE = 900  # under way, of the 1,024 that Envoy allows
_TICK_S = 0.005
_LEAD_S = 1.0  # the flood runs before the first good key is asked for
_SOCKET = "authz-0.sock"
_MODELS = ("registry.ollama.ai/library/llama3.*:*",)

_HEADER = (
    "| addresses | answered/s | of these | good keys | p50 ms | p99 ms | max ms "
    "| look-ups of unknown | bound | load |\n"
    "|---:|---:|---|---|---:|---:|---:|---:|---:|---:|"
)

# A look-up is one scan of this table; noting the last use of a good key is another.
_LOOKUPS = """
SELECT coalesce(sum(seq_scan + idx_scan), 0)::int FROM pg_stat_user_tables
 WHERE relname = 'secrets'
"""
_OTHERS = """
SELECT count(*)::int FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
   AND backend_type = 'client backend'
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the flood was answered, by status, and for how long it was sent."""

    statuses: Mapping[int, int]
    seconds: float

    @property
    def per_s(self) -> float:
        """How many were answered in a second."""
        return sum(self.statuses.values()) / self.seconds


@dataclass(frozen=True, slots=True)
class Flood:
    """What one flood did; ``good`` are the seconds and statuses of good cold keys."""

    sources: int
    sent: Sent
    good: Sequence[tuple[float, int]]
    lookups: int
    load_average: float

    @property
    def bound(self) -> float:
        """How many look-ups of unknown keys PostgreSQL may see."""
        at_most = PER_SOURCE_PER_S * (self.sent.seconds + 1) + _UNDER_WAY
        return self.sources * at_most


async def measure_strangers() -> Sequence[Flood]:
    """Measure, after a run without a flood. Raises ConfigError, ChildDied."""
    return [await _measure(sources) for sources in (0, *SOURCES)]


async def _measure(sources: int) -> Flood:
    click.echo(f"strangers, flood from {sources:,} addresses", err=True)
    async with AsyncExitStack() as stack:
        workplace = stack.enter_context(private_directory("authz-bench-"))
        url = await stack.enter_async_context(embedded_postgres(workplace / "postgres"))
        redis = await stack.enter_async_context(embedded_redis(workplace / "redis"))
        connection = await stack.enter_async_context(connected(url))
        good = await _good_checks(connection)
        settings = {
            "AUTHZ_DATABASE_URL": url,
            "AUTHZ_REDIS_URL": redis or "",
            "AUTHZ_CACHE_SECRET": secrets.token_hex(32),
        }
        before = await connection.fetchval(_LOOKUPS)
        async with replica(settings, workplace / "replica") as one:
            flooding = _flooding(workplace / "replica" / _SOCKET, sources)
            async with flooding as sent:
                answers = await _ask_evenly(one, good)
        lookups = await _lookups(connection) - before
        return Flood(sources, await sent, answers, lookups, os.getloadavg()[0])


async def _good_checks(connection: Connection) -> Sequence[bytes]:
    """Make keys; return a Check for each, from addresses that send nothing else."""
    await postgres_schema.migrate(connection)
    issued = [
        issue(
            f"key-{number}",
            models=_MODELS,
            scopes=[Scope.INFERENCE.value],
            expires_at=None,
        )
        for number in range(GOOD_KEYS)
    ]
    await PostgresKeyWriter(connection).create_all([new for new, _ in issued])
    addresses = cycle(f"192.0.2.{number}" for number in range(_GOOD_SOURCES))
    return [
        _from(address, check_message(raw_key))
        for address, (_, raw_key) in zip(addresses, issued, strict=False)
    ]


def _from(address: str, message: bytes) -> bytes:
    check = pb.CheckRequest.FromString(message)
    check.attributes.source.address.socket_address.address = address
    return check.SerializeToString()


async def _ask_evenly(
    one: Replica, messages: Sequence[bytes]
) -> Sequence[tuple[float, int]]:
    start = perf_counter()
    tasks = []
    for number, message in enumerate(messages):
        await asyncio.sleep(start + number / GOOD_PER_S - perf_counter())
        tasks.append(asyncio.create_task(_timed(one, message)))
    return await asyncio.gather(*tasks)


async def _timed(one: Replica, message: bytes) -> tuple[float, int]:
    start = perf_counter()
    status = await one.check(message)
    return perf_counter() - start, status


async def _lookups(connection: Connection) -> int:
    """Return how many look-ups there were; ended sessions have reported theirs."""
    while await connection.fetchval(_OTHERS):  # noqa: ASYNC110
        await asyncio.sleep(_TICK_S)
    found: int = await connection.fetchval(_LOOKUPS)
    return found


@asynccontextmanager
async def _flooding(socket: Path, sources: int) -> AsyncIterator[asyncio.Future[Sent]]:
    """Flood from another process, a little before the block and as long as it."""
    loop = asyncio.get_running_loop()
    seconds = _LEAD_S + GOOD_KEYS / GOOD_PER_S
    context = multiprocessing.get_context("spawn")  # grpc and fork do not go together
    with ProcessPoolExecutor(1, context) as pool:
        await loop.run_in_executor(pool, os.getpid)  # it has started
        sent = loop.run_in_executor(
            pool, _flood, str(socket), sources, seconds, OFFERED_PER_S
        )
        await asyncio.sleep(_LEAD_S)
        yield sent
        await sent


def _flood(socket: str, sources: int, seconds: float, per_s: int) -> Sent:
    return asyncio.run(_send_evenly(socket, sources, seconds, per_s))


async def _send_evenly(socket: str, sources: int, seconds: float, per_s: int) -> Sent:
    """Send as many as are offered, or as many as are answered, if these are fewer."""
    statuses: Counter[int] = Counter()
    under_way: set[asyncio.Task[None]] = set()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        one = Replica(0, channel)

        async def send(message: bytes) -> None:
            statuses[await one.check(message)] += 1

        unknown = _unknown_checks(sources)
        start, started = perf_counter(), 0
        while sources and (passed := perf_counter() - start) < seconds:
            due = min(int(passed * per_s) - started, _AT_ONCE - len(under_way))
            for message in islice(unknown, max(due, 0)):
                task = asyncio.create_task(send(message))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            started += max(due, 0)
            await asyncio.sleep(_TICK_S)
        await asyncio.gather(*under_way)
    return Sent(statuses, perf_counter() - start)


def _unknown_checks(sources: int) -> Iterator[bytes]:
    """Make up well-formed keys without end, and ask from one address after another."""
    example = mint(bytes(32))
    checks = [
        _from(f"198.18.{number >> 8}.{number & 255}", check_message(example))
        for number in range(sources)
    ]
    parts = [check.partition(example.encode()) for check in checks]
    for before, _, after in cycle(parts):
        yield before + mint(secrets.token_bytes(32)).encode() + after


def _percentiles(seconds: Sequence[float]) -> Sequence[float]:
    found = quantiles(seconds, n=100, method="inclusive")
    return found[49], found[98], max(seconds)


def strangers_section(floods: Sequence[Flood]) -> str:
    """Return the table of floods."""
    paragraphs = (
        "## Unknown keys",
        "\n".join([_HEADER, *(_row(flood, floods[0]) for flood in floods)]),
        f"One replica with Redis; {GOOD_KEYS:,} good keys that it has never seen are "
        f"asked for at {GOOD_PER_S} a second, from {_GOOD_SOURCES} addresses that "
        "send nothing else. Beside them another process sends well-formed keys that "
        f"do not exist, {OFFERED_PER_S:,} a second or as many as are answered, "
        f"{_AT_ONCE:,} under way at most. The bound is what "
        f"{PER_SOURCE_PER_S} a second and address allow; PostgreSQL counts the "
        "look-ups, less those of the run without a flood. Service, stores and both "
        "clients share the cores named above.",
    )
    return "\n\n".join(paragraphs)


def _row(flood: Flood, quiet: Flood) -> str:
    times = _percentiles([seconds for seconds, _ in flood.good])
    cells = (
        f"{flood.sources:,}",
        f"{flood.sent.per_s:,.0f}",
        _statuses(flood.sent.statuses),
        _statuses(Counter(status for _, status in flood.good)),
        *(f"{seconds * 1e3:.1f}" for seconds in times),
        f"{flood.lookups - quiet.lookups:,}",
        f"{flood.bound:,.0f}",
        f"{flood.load_average:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _statuses(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{status}: {n:,}" for status, n in sorted(counts.items())) or "-"


async def _report() -> str:
    return document(surroundings(), [strangers_section(await measure_strangers())])


if __name__ == "__main__":
    outcome_of(_report())
