"""A million keys: the cold look-up, the memory of a worker, and the list of them all.

`python -m benchmarks.scale` measures this alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import click

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.core.credential import Peppers
from authz.issuing import issue_secret
from authz.local.postgres import embedded_postgres
from authz.local.process import private_directory
from benchmarks.command import outcome_of
from benchmarks.processes import PEAK, memory_kb
from benchmarks.replicas import PASSES, at_rate, check_message, replica
from benchmarks.report import document, scale_section
from benchmarks.surroundings import surroundings
from benchmarks.wrk import LoadFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from authz.adapters.postgres import Connection
    from benchmarks.replicas import Replica

KEYS = 1_000_000
CACHED = 100_000  # AUTHZ_CACHE_SIZE where it is not set
COLD = 4_000
COLD_PER_S = 200
_WARM_UP = 200  # connections open, code is warm
_AT_ONCE = 16
_CHUNK = 1 << 16
_CHUNKS_A_LOOK = 16

# Of these digests the raw keys are known; they lie evenly among all.
_ASKED = "CREATE TEMP TABLE asked (n int PRIMARY KEY, digest bytea)"
_ADD_KEYS = """
INSERT INTO keys (id, name, owner, models, scopes)
SELECT md5(n::text)::uuid, 'key-' || n, 'team-' || n % 1000,
       ARRAY['registry.ollama.ai/library/llama3.*:*',
             'registry.ollama.ai/team-' || n % 1000 || '/*:*'],
       ARRAY['inference', 'read']
  FROM generate_series(1, $1::int) AS n
"""
_ADD_SECRETS = """
INSERT INTO secrets (key_id, digest, prefix)
SELECT md5(n::text)::uuid, coalesce(digest, sha256(n::text::bytea)), 'nz_' || n
  FROM generate_series(1, $1::int) AS n LEFT JOIN asked USING (n)
"""
_TRIGGERS = "ALTER TABLE secrets {} TRIGGER USER"


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
    """

    keys: int
    cached: int
    cold_per_s: int

    generated: float
    cold: list[float]
    empty_kb: int
    full_kb: int
    filled: float
    listing: Listing

    @property
    def bytes_a_key(self) -> float:
        """What a key in memory takes."""
        return (self.full_kb - self.empty_kb) * 1024 / (self.cached - _WARM_UP)


async def measure_scale() -> Scale:
    """Measure. Raises ConfigError, ChildDied, LoadFailed."""
    async with AsyncExitStack() as stack:
        workplace = stack.enter_context(private_directory("authz-bench-"))
        url = await stack.enter_async_context(
            embedded_postgres(workplace / "postgres", durable=False)
        )
        settings = {"AUTHZ_DATABASE_URL": url, "AUTHZ_REDIS_URL": ""}
        click.echo(f"scale, {KEYS:,} keys", err=True)
        asked, generated = await _generate(url)
        one = await stack.enter_async_context(replica(settings, workplace / "replica"))
        await _ask_all(one, asked[:_WARM_UP])
        empty_kb = memory_kb(one.pid)
        click.echo("scale, cold look-ups", err=True)
        fresh = asked[_WARM_UP : _WARM_UP + COLD]
        cold = await at_rate(COLD_PER_S, map(one.pass_through, fresh))
        click.echo("scale, memory", err=True)
        start = perf_counter()
        await _ask_all(one, asked)
        filled, full_kb = perf_counter() - start, memory_kb(one.pid)
        click.echo("scale, list", err=True)
        listing = await _list(settings)
        memory = (empty_kb, full_kb)
        counts = (KEYS, CACHED, COLD_PER_S)
        return Scale(*counts, generated, cold, *memory, filled, listing)


async def _generate(url: str) -> tuple[Sequence[bytes], float]:
    """Fill the database; return a Check for each key to ask for, and the seconds."""
    issued = [issue_secret(Peppers()) for _ in range(CACHED)]
    every = KEYS // CACHED
    digests = [(n * every, secret.digest) for n, (secret, _) in enumerate(issued, 1)]
    async with connected(url) as connection:
        await postgres_schema.migrate(connection)
        start = perf_counter()
        await connection.execute(_ASKED)
        await connection.copy_records_to_table("asked", records=digests)
        await _insert(connection)
        seconds = perf_counter() - start
    return [check_message(raw_key) for _, raw_key in issued], seconds


async def _insert(connection: Connection) -> None:
    # Nobody listens yet, and a million notifications would be most of the time.
    await connection.execute(_TRIGGERS.format("DISABLE"))
    await connection.execute(_ADD_KEYS, KEYS)
    await connection.execute(_ADD_SECRETS, KEYS)
    await connection.execute(_TRIGGERS.format("ENABLE"))
    # Now, not by itself in the middle of what is measured.
    await connection.execute("VACUUM ANALYZE keys, secrets")


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


async def _report() -> str:
    return document(surroundings(), [scale_section(await measure_scale())])


if __name__ == "__main__":
    outcome_of(_report())
