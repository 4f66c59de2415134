"""How long a changed key still passes: from the COMMIT to the last replica's refusal.

`python -m benchmarks.revocation` measures this alone.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter
from typing import TYPE_CHECKING

import click

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.core.model import Scope
from authz.issuing import issue
from authz.local.postgres import embedded_postgres
from authz.local.process import private_directory
from authz.local.redis import embedded_redis
from authz.ports import KeyChanges
from benchmarks.command import outcome_of
from benchmarks.replicas import PASSES, at_rate, check_message, replica
from benchmarks.report import Times, document, section, table, times
from benchmarks.surroundings import surroundings
from benchmarks.wrk import LoadFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
    from uuid import UUID

    from authz.adapters.postgres import Connection
    from benchmarks.replicas import Replica

REPLICAS = 3
LOAD_PER_S = 300
_LOAD_KEYS = 200
CHANGES = 200
CUTS = 20
_KEYS_A_CUT = 10
_PAUSE_S = 0.05
_POLL_S = 0.001
# Many keys are asked for at once while nobody listens.
_CUT_POLL_S = 0.01
_CUT_PAUSE_S = 0.1
_MOST_S = 10.0

_MODELS = ("registry.ollama.ai/library/llama3.*:*",)
_OTHER_MODELS = ("registry.ollama.ai/library/mistral:latest",)
_REVOKED, _NOT_LISTED = 401, 403

_HEADER = "from | to | samples | p50 ms | p99 ms | max ms"

# The statements that a listening connection alone sends.
_LISTENERS = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
   AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')
"""
_CUT = "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid"


@dataclass(frozen=True, slots=True)
class Subject:
    """A key to change, and the Check that it passes until then."""

    id: UUID
    message: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """One loss of all listening connections; all in seconds.

    ``deaf``: until all listened again. ``refused``: for each key changed meanwhile,
    from its COMMIT. ``late``: from listening again until all of these were refused.
    """

    deaf: float
    refused: list[float]
    late: float


@dataclass(frozen=True, slots=True)
class Revocation:
    """What was measured; ``load`` are the calls that ran beside.

    ``deaf``, ``meanwhile`` and ``late`` are those of all cuts.
    """

    revoked: Times
    models_changed: Times
    deaf: Times
    meanwhile: Times
    late: Times
    load: Times


@dataclass(frozen=True, slots=True)
class Site:
    """What runs: the replicas, and their database as an administrator reaches it."""

    replicas: Sequence[Replica]
    connection: Connection
    observer: Connection

    async def keys(self, count: int) -> Sequence[Subject]:
        """Make keys."""
        issued = [
            issue(
                f"key-{secrets.token_hex(8)}",
                models=_MODELS,
                scopes=[Scope.INFERENCE.value],
                expires_at=None,
            )
            for _ in range(count)
        ]
        await PostgresKeyWriter(self.connection).create_all([new for new, _ in issued])
        return [Subject(new.id, check_message(raw_key)) for new, raw_key in issued]

    async def remember(self, subject: Subject) -> None:
        """Have every replica keep a key in memory."""
        for one in self.replicas:
            await one.pass_through(subject.message)

    async def revoke(self, subject: Subject) -> float:
        """Return when the COMMIT returned."""
        async with self.connection.transaction():
            await PostgresKeyWriter(self.connection).revoke(str(subject.id))
        return perf_counter()

    async def change_models(self, subject: Subject) -> float:
        """Return when the COMMIT returned."""
        changes = KeyChanges(models=_OTHER_MODELS)
        async with self.connection.transaction():
            await PostgresKeyWriter(self.connection).update(str(subject.id), changes)
        return perf_counter()

    async def refused(self, subject: Subject, status: int, every_s: float) -> float:
        """Return when the last replica refused, each asked again and again."""
        times = (
            _refused(one, subject.message, status, every_s) for one in self.replicas
        )
        async with asyncio.timeout(_MOST_S):
            return max(await asyncio.gather(*times))

    async def listeners(self) -> set[int]:
        """Return the server's processes of the connections that listen."""
        return {row["pid"] for row in await self.observer.fetch(_LISTENERS)}


async def measure_revocation() -> Revocation:
    """Measure under load. Raises ConfigError, ChildDied, LoadFailed."""
    async with _site() as site:
        click.echo("revocation, under load", err=True)
        stop = asyncio.Event()
        loading = asyncio.create_task(
            at_rate(LOAD_PER_S, _load(site.replicas, await _load_keys(site), stop))
        )
        try:
            revoked, models_changed = await _changes(site)
            click.echo("revocation, listening connections cut", err=True)
            cuts = [await _cut(site) for _ in range(CUTS)]
        finally:
            stop.set()
            load = await loading
        return Revocation(
            revoked=times(revoked),
            models_changed=times(models_changed),
            deaf=times([cut.deaf for cut in cuts]),
            meanwhile=times([seconds for cut in cuts for seconds in cut.refused]),
            late=times([cut.late for cut in cuts]),
            load=times(load),
        )


async def _load_keys(site: Site) -> Sequence[Subject]:
    subjects = await site.keys(_LOAD_KEYS)
    for subject in subjects:
        await site.remember(subject)
    return subjects


def _load(
    replicas: Sequence[Replica], subjects: Sequence[Subject], stop: asyncio.Event
) -> Iterator[Coroutine[None, None, None]]:
    for one, subject in zip(cycle(replicas), cycle(subjects), strict=False):
        if stop.is_set():
            return
        yield one.pass_through(subject.message)


async def _changes(site: Site) -> tuple[list[float], list[float]]:
    revoked, models_changed = [], []
    subjects = iter(await site.keys(2 * CHANGES))
    # The two kinds take turns, so that noise hits both alike.
    for first, second in zip(subjects, subjects, strict=True):
        await site.remember(first)
        committed = await site.revoke(first)
        revoked.append(await site.refused(first, _REVOKED, _POLL_S) - committed)
        await asyncio.sleep(_PAUSE_S)
        await site.remember(second)
        committed = await site.change_models(second)
        last = await site.refused(second, _NOT_LISTED, _POLL_S)
        models_changed.append(last - committed)
        await asyncio.sleep(_PAUSE_S)
    return revoked, models_changed


async def _cut(site: Site) -> Cut:
    """Cut all that listen; change keys until all listen again, and a little longer."""
    subjects = await site.keys(_KEYS_A_CUT)
    for subject in subjects:
        await site.remember(subject)
    old = await site.listeners()
    await site.observer.execute(_CUT, list(old))
    cut = perf_counter()
    returning = asyncio.create_task(_listening_again(site, old))
    changes = []
    for subject in subjects:
        committed = await site.revoke(subject)
        refusal = asyncio.create_task(site.refused(subject, _REVOKED, _CUT_POLL_S))
        changes.append((committed, refusal))
        await asyncio.sleep(_CUT_PAUSE_S)
    returned = await returning
    ended = [(committed, await refusal) for committed, refusal in changes]
    meanwhile = [change for change in ended if change[0] < returned]
    return Cut(
        deaf=returned - cut,
        refused=[refused - committed for committed, refused in meanwhile],
        late=max(0.0, max(refused for _, refused in meanwhile) - returned),
    )


async def _listening_again(site: Site, old: set[int]) -> float:
    async with asyncio.timeout(_MOST_S):
        while len(await site.listeners() - old) < REPLICAS:  # noqa: ASYNC110
            await asyncio.sleep(_CUT_POLL_S)
    return perf_counter()


async def _refused(
    one: Replica, message: bytes, expected: int, every_s: float
) -> float:
    while True:
        sent = perf_counter()
        status = await one.check(message)
        if status == expected:
            return perf_counter()
        if status != PASSES:
            msg = f"a changed key was answered by {status}"
            raise LoadFailed(msg)
        await asyncio.sleep(sent + every_s - perf_counter())


@asynccontextmanager
async def _site() -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        workplace = stack.enter_context(private_directory("authz-bench-"))
        url = await stack.enter_async_context(embedded_postgres(workplace / "postgres"))
        redis = await stack.enter_async_context(embedded_redis(workplace / "redis"))
        connections = [await stack.enter_async_context(connected(url)) for _ in "12"]
        await postgres_schema.migrate(connections[0])
        settings = {
            "AUTHZ_DATABASE_URL": url,
            "AUTHZ_REDIS_URL": redis or "",
            "AUTHZ_CACHE_SECRET": secrets.token_hex(32),
        }
        replicas = [
            await stack.enter_async_context(replica(settings, workplace / str(number)))
            for number in range(REPLICAS)
        ]
        yield Site(replicas, *connections)


def revocation_section(measured: Revocation) -> str:
    """Return the table of revocations."""
    rows = (
        ("COMMIT of a revocation", "last refusal", measured.revoked),
        ("COMMIT of other models", "last refusal", measured.models_changed),
        ("cut of LISTEN", "all listen again", measured.deaf),
        ("COMMIT of a revocation meanwhile", "last refusal", measured.meanwhile),
        ("all listen again", "last refusal of all these", measured.late),
    )
    return section(
        "Revocation",
        table(_HEADER, [_row(*row) for row in rows], words=2),
        f"{REPLICAS} replicas of `authz serve`, each with the key in memory, on one "
        "PostgreSQL and one Redis; all share the cores named above with the client. "
        "From the return of the COMMIT each replica is asked for the key again and "
        "again, every millisecond at most; a time ends with the refusal of the last, "
        "and has at least one call to each in it.",
        f"Beside it, {measured.load.count:,} Checks of other keys, evenly in time and "
        f"all allowed: {measured.load}. LISTEN is cut by ending the "
        "server's processes of all connections that listen at once.",
    )


def _row(since: str, until: str, taken: Times) -> Sequence[str]:
    figures = (taken.p50_ms, taken.p99_ms, taken.max_ms)
    return (since, until, str(taken.count), *(f"{figure:.1f}" for figure in figures))


async def _report() -> str:
    measured = await measure_revocation()
    return document(surroundings(), [revocation_section(measured)])


if __name__ == "__main__":
    outcome_of(_report())
