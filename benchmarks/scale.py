"""One key to a million: the cold look-up, the memory of a worker, the list of all.

`python -m benchmarks.scale` measures this alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter
from typing import TYPE_CHECKING

import click

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.core.credential import Peppers
from authz.issuing import issue_secret
from authz.local.postgres import embedded_postgres
from authz.local.process import private_directory
from benchmarks import many_keys
from benchmarks.command import outcome_of
from benchmarks.plots import lines
from benchmarks.processes import PEAK, memory_kb
from benchmarks.replicas import PASSES, at_rate, check_message, replica
from benchmarks.report import Times, document, mb, section, table, times
from benchmarks.surroundings import surroundings
from benchmarks.wrk import LoadFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from authz.adapters.postgres import Connection
    from benchmarks.replicas import Replica

KEYS = 1_000_000
STEPS = (1, 10, 1_000, 100_000, KEYS)
CACHED = 100_000  # AUTHZ_CACHE_SIZE where it is not set
COLD = 4_000
COLD_PER_S = 200
ASKED_A_STEP = 1_000
_WARM_UP = 200  # connections open, code is warm
_AT_ONCE = 16
_CHUNK = 1 << 16
_CHUNKS_A_LOOK = 16


@dataclass(frozen=True, slots=True)
class Listing:
    """One `authz keys list --json`: its time, output and largest memory (kB)."""

    seconds: float
    size: int
    peak_kb: int


@dataclass(frozen=True, slots=True)
class Scale:
    """What was measured: seconds, and a worker's resident memory in kB.

    The memory is that before and after the worker was asked for ``cached`` keys.
    ``steps`` are look-ups in PostgreSQL while it has so many keys.
    """

    keys: int
    cached: int
    cold_per_s: int

    steps: dict[int, Times]
    cold: Times
    empty_kb: int
    full_kb: int
    filled: float
    listing: Listing

    @property
    def bytes_a_key(self) -> float:
        """What a key in memory takes."""
        return (self.full_kb - self.empty_kb) * 1024 / (self.cached - _WARM_UP)


@dataclass(frozen=True, slots=True)
class Held:
    """A key that is asked for: its number, what is stored, and its Check."""

    number: int
    digest: bytes
    message: bytes


async def measure_scale() -> Scale:
    """Measure. Raises ConfigError, ChildDied, LoadFailed."""
    async with AsyncExitStack() as stack:
        workplace = stack.enter_context(private_directory("authz-bench-"))
        url = await stack.enter_async_context(
            embedded_postgres(workplace / "postgres", durable=False)
        )
        settings = {"AUTHZ_DATABASE_URL": url, "AUTHZ_REDIS_URL": ""}
        held = _held()
        async with connected(url) as connection:
            await postgres_schema.migrate(connection)
            steps = await _grow(connection, settings, workplace, held)
        one = await stack.enter_async_context(replica(settings, workplace / "replica"))
        asked = [key.message for key in held][:CACHED]
        await _ask_all(one, asked[:_WARM_UP])
        empty_kb = memory_kb(one.pid)
        click.echo("scale, cold look-ups", err=True)
        fresh = asked[_WARM_UP :: (CACHED - _WARM_UP) // COLD]
        cold = times(await at_rate(COLD_PER_S, map(one.pass_through, fresh)))
        click.echo("scale, memory", err=True)
        start = perf_counter()
        await _ask_all(one, asked)
        filled, full_kb = perf_counter() - start, memory_kb(one.pid)
        click.echo("scale, list", err=True)
        listing = await _list(settings)
        counts = (KEYS, len(asked), COLD_PER_S)
        return Scale(*counts, steps, cold, empty_kb, full_kb, filled, listing)


def _held() -> Sequence[Held]:
    """Make keys: the first ones, and others that lie evenly among all."""
    numbers = {*range(1, ASKED_A_STEP), *range(0, KEYS + 1, KEYS // CACHED)} - {0}
    issued = [(number, *issue_secret(Peppers())) for number in sorted(numbers)]
    return [
        Held(number, secret.digest, check_message(raw_key))
        for number, secret, raw_key in issued
    ]


async def _grow(
    connection: Connection,
    settings: Mapping[str, str],
    workplace: Path,
    held: Sequence[Held],
) -> dict[int, Times]:
    """Add keys step by step; after each, time look-ups of some that lie evenly."""
    await many_keys.prepare(connection, [(key.number, key.digest) for key in held])
    forgetful = {**settings, "AUTHZ_CACHE_TTL_S": "0"}
    steps: dict[int, Times] = {}
    async with replica(forgetful, workplace / "forgetful") as one:
        for keys in STEPS:
            click.echo(f"scale, keys: {keys:,}", err=True)
            await many_keys.add(connection, max(steps, default=0) + 1, keys)
            there = [key.message for key in held if key.number <= keys]
            some = there[:: -(-len(there) // ASKED_A_STEP)]
            calls = map(one.pass_through, islice(cycle(some), ASKED_A_STEP))
            steps[keys] = times(await at_rate(COLD_PER_S, calls))
    return steps


async def _ask_all(one: Replica, messages: Sequence[bytes]) -> None:
    rest = iter(messages)
    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(_ask_rest(one, rest))


async def _ask_rest(one: Replica, rest: Iterator[bytes]) -> None:
    for message in rest:
        # Memory is measured here: what came too late under this load is asked again.
        if await one.check(message) != PASSES:
            await one.pass_through(message)


async def _list(settings: Mapping[str, str]) -> Listing:
    start = perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "authz", "keys", "list", "--json"),
        env=os.environ | settings,
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdout is None:
        raise LoadFailed
    size = peak_kb = chunks = 0
    while chunk := await process.stdout.read(_CHUNK):
        size += len(chunk)
        chunks += 1
        if chunks % _CHUNKS_A_LOOK == 0:
            peak_kb = memory_kb(process.pid, PEAK)
    if await process.wait() != 0:
        msg = "`authz keys list` failed"
        raise LoadFailed(msg)
    return Listing(perf_counter() - start, size, peak_kb)


def scale_section(measured: Scale) -> str:
    """Return what a million keys cost."""
    listing = measured.listing
    rows = (
        *(
            (f"look-ups in PostgreSQL, keys: {keys:,}", str(taken))
            for keys, taken in measured.steps.items()
        ),
        (
            f"cold look-ups, keys: {measured.keys:,}; {measured.cold.count:,} of them",
            str(measured.cold),
        ),
        (
            f"memory of a worker that keeps {measured.cached:,} keys",
            f"{mb(measured.full_kb)}, of which {mb(measured.empty_kb)} without them: "
            f"{measured.bytes_a_key:,.0f} bytes a key",
        ),
        (
            "asking for all of these once",
            f"{measured.filled:.0f} s, "
            f"{measured.cached / measured.filled:,.0f} a second",
        ),
        (
            f"`authz keys list --json`, keys: {measured.keys:,}",
            f"{listing.seconds:.0f} s for {listing.size / 1e6:.0f} MB, "
            f"at most {mb(listing.peak_kb)} of memory",
        ),
    )
    return section(
        "Scale",
        table("what | measured", rows, words=2),
        "![look-ups by number of keys](keys.svg)",
        f"One replica, without Redis; look-ups at {measured.cold_per_s} a second. The "
        "time is that of the whole Check. The first rows are of a replica that trusts "
        "no key without asking (`AUTHZ_CACHE_TTL_S=0`), "
        f"{ASKED_A_STEP:,} look-ups each. A look-up is cold when its key was never "
        "asked for. Memory is what the kernel says is resident.",
    )


def scale_plots(measured: Scale) -> Mapping[str, str]:
    """Return the plot."""
    steps = measured.steps.items()
    curves = {
        "p50": [(float(keys), taken.p50_ms) for keys, taken in steps],
        "p99": [(float(keys), taken.p99_ms) for keys, taken in steps],
    }
    title = "Look-up in PostgreSQL, whole Check, ms"
    return {"keys.svg": lines(title, "keys in PostgreSQL", curves, own="p50")}


async def _report() -> str:
    return document(surroundings(), [scale_section(await measure_scale())])


if __name__ == "__main__":
    outcome_of(_report())
