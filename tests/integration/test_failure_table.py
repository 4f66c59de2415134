"""The failure table of docs/operations.md, each cell through the real parts."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from authz.adapters.postgres import connected
from tests import rows
from tests.failing import Replica, Site, Store, replica, running_site, until
from tests.rows import assert_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from tests.proxy import Line

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
FIRST_CELL = "what fails"
BUSY_S = 2.0  # what a busy machine may add to a time of the page
MAX_STALE_S = 2
REDIS_DELAY_S, POSTGRES_DELAY_S = 0.2, 2.0
KINDS = (
    *("fresh", "cached", "old", "elsewhere", "new"),
    *("refused", "heard", "meanwhile"),
)
ROWS = {"401": rows.UNAUTHORIZED, "503": rows.UNAVAILABLE}

END_LISTENERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE pid <> pg_backend_pid() AND query IN ('SELECT 1', 'LISTEN "authz_keys"')
"""

# As a standby answers, after the primary has gone with all its connections.
ONLY_READ = "ALTER ROLE CURRENT_USER SET default_transaction_read_only = on"
WRITE_AGAIN = "ALTER ROLE CURRENT_USER RESET default_transaction_read_only"
END_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE pid <> pg_backend_pid() AND usename = CURRENT_USER
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """Replicas for which the same moment is within the TTL, or after it, or later."""

    site: Site
    fresh: Replica
    cached: Replica
    old: Replica
    aged_keys: list[str]

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return self.fresh, self.cached, self.old

    def asked(self, kind: str) -> Replica:
        """Return who is asked for a kind of key."""
        others = {"cached": self.cached, "elsewhere": self.cached, "old": self.old}
        return others.get(kind, self.fresh)


@asynccontextmanager
async def aged_keys(site: Site) -> AsyncIterator[list[str]]:
    """Make keys before there are replicas, which have heard of no change of them."""
    yield [await site.new_key() for _ in FAULTS]


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    logs = tmp_path_factory.mktemp("failures")
    at_once = {"AUTHZ_CACHE_TTL_S": "0"}
    short = {**at_once, "AUTHZ_MAX_STALE_S": str(MAX_STALE_S)}
    async with (
        running_site(logs) as site,
        aged_keys(site) as aged,
        replica(site, logs / "fresh") as fresh,
        replica(site, logs / "cached", **at_once) as cached,
        replica(site, logs / "old", **short) as old,
    ):
        yield Scene(site, fresh, cached, old, aged)


def table() -> Mapping[str, Mapping[str, str]]:
    """Read the table of the page: its rows by their first cell, by column."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    start = next(n for n, cells in enumerate(lines) if cells[0] == FIRST_CELL)
    body = (c for c in lines[start + 2 :] if len(c) == len(lines[start]))
    return {cells[0]: dict(zip(lines[start], cells, strict=True)) for cells in body}


TABLE = table()


@asynccontextmanager
async def stopped(store: Store) -> AsyncIterator[None]:
    await store.stop()
    try:
        yield
    finally:
        await store.start()


@asynccontextmanager
async def killed(store: Store) -> AsyncIterator[None]:
    await store.kill()
    try:
        yield
    finally:
        await store.start()


@asynccontextmanager
async def hanging(store: Store) -> AsyncIterator[None]:
    store.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        store.signal(signal.SIGCONT)


@asynccontextmanager
async def on_lines(store: Store, fail: Callable[[Line], None]) -> AsyncIterator[None]:
    for line in store.lines:
        fail(line)
    try:
        yield
    finally:
        for line in store.lines:
            line.mend()


@asynccontextmanager
async def on_both(
    site: Site, fault: Callable[[Store], AbstractAsyncContextManager[None]]
) -> AsyncIterator[None]:
    async with fault(site.redis), fault(site.postgres):
        yield


def cut(store: Store) -> AbstractAsyncContextManager[None]:
    return on_lines(store, lambda line: line.cut())


def slow(store: Store, delay_s: float) -> AbstractAsyncContextManager[None]:
    return on_lines(store, lambda line: line.slow_down(delay_s))


@asynccontextmanager
async def deaf(site: Site) -> AsyncIterator[None]:
    """Lose the connections that listen, and no others."""
    for line in site.postgres.lines:
        line.lets_listen = False
    async with connected(site.postgres.url) as connection:
        await connection.execute(END_LISTENERS)
    try:
        yield
    finally:
        for line in site.postgres.lines:
            line.lets_listen = True


@asynccontextmanager
async def standby(store: Store) -> AsyncIterator[None]:
    """Leave no host that may be written to."""
    async with connected(store.url) as connection:
        await connection.execute(ONLY_READ)
        await connection.execute(END_OTHERS)
        try:
            yield
        finally:
            await connection.execute(WRITE_AGAIN)


@asynccontextmanager
async def ended(scene: Scene, number: signal.Signals) -> AsyncIterator[None]:
    await asyncio.gather(*(one.end_authz(number) for one in scene.replicas))
    try:
        yield
    finally:
        await asyncio.gather(*(one.start_authz() for one in scene.replicas))


@asynccontextmanager
async def hung(scene: Scene) -> AsyncIterator[None]:
    for one in scene.replicas:
        one.gateway.authz.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for one in scene.replicas:
            one.gateway.authz.process.send_signal(signal.SIGCONT)


FAULTS: Mapping[str, Callable[[Scene], AbstractAsyncContextManager[None]]] = {
    "Redis stopped": lambda scene: stopped(scene.site.redis),
    "Redis killed": lambda scene: killed(scene.site.redis),
    "Redis hangs": lambda scene: hanging(scene.site.redis),
    "Redis slow": lambda scene: slow(scene.site.redis, REDIS_DELAY_S),
    "Redis cut off": lambda scene: cut(scene.site.redis),
    "PostgreSQL stopped": lambda scene: stopped(scene.site.postgres),
    "PostgreSQL killed": lambda scene: killed(scene.site.postgres),
    "PostgreSQL hangs": lambda scene: hanging(scene.site.postgres),
    "PostgreSQL slow": lambda scene: slow(scene.site.postgres, POSTGRES_DELAY_S),
    "PostgreSQL cut off": lambda scene: cut(scene.site.postgres),
    "no writable host": lambda scene: standby(scene.site.postgres),
    "both stopped": lambda scene: on_both(scene.site, stopped),
    "both hang": lambda scene: on_both(scene.site, hanging),
    "both cut off": lambda scene: on_both(scene.site, cut),
    "LISTEN lost": lambda scene: deaf(scene.site),
    "authz stopped": lambda scene: ended(scene, signal.SIGTERM),
    "authz killed": lambda scene: ended(scene, signal.SIGKILL),
    "authz hangs": hung,
}


def test_every_row_of_the_page_is_tested() -> None:
    assert list(TABLE) == list(FAULTS)
    assert set(TABLE["Redis stopped"]) == {
        *(FIRST_CELL, "within", "well again"),
        *KINDS,
    }


@pytest.mark.parametrize("fault", FAULTS)
async def test_in_a_failure_each_key_gets_what_the_page_says(
    scene: Scene, fault: str, record_property: Callable[[str, object], None]
) -> None:
    row = TABLE[fault]
    keys = await prepared(scene)
    later = await scene.site.new_key()
    async with AsyncExitStack() as failure:
        await failure.enter_async_context(FAULTS[fault](scene))
        at_once = (kind for kind in KINDS if kind not in {"old", "meanwhile"})
        await assert_answers(scene, row, keys, *at_once)
        if row["meanwhile"] != "-":
            await scene.site.revoke(keys["meanwhile"])
            await become(scene, row, keys, "meanwhile")
        await become(scene, row, keys, "old")
        lasting = (kind for kind in KINDS if row[kind] != "-")
        await assert_answers(scene, row, keys, *lasting)
    for what, took in await recovered(scene, row, keys, later):
        record_property(what, round(took, 3))


async def prepared(scene: Scene) -> Mapping[str, str]:
    """Make a key of each kind."""
    keys = {kind: await scene.site.new_key() for kind in KINDS}
    keys["elsewhere"] = scene.aged_keys.pop()
    for kind, key in keys.items():
        seen_by = scene.fresh if kind == "elsewhere" else scene.asked(kind)
        if kind != "new":
            assert await seen_by.status(key) == 200, kind
    # What is announced first is heard first: so nobody has to ask for "heard".
    await scene.site.revoke(keys["heard"])
    await scene.site.revoke(keys["refused"])
    await become(scene, {"refused": "401"}, keys, "refused")
    return keys


async def become(
    scene: Scene, row: Mapping[str, str], keys: Mapping[str, str], kind: str
) -> None:
    """Wait for the answer of the page; until then the key is served as before."""

    async def as_expected() -> bool:
        status = await scene.asked(kind).status(keys[kind])
        assert status in {200, int(row[kind])}, kind
        return status == int(row[kind])

    await until(as_expected, MAX_STALE_S + BUSY_S)


async def assert_answers(
    scene: Scene, row: Mapping[str, str], keys: Mapping[str, str], *kinds: str
) -> None:
    """Ask for all kinds at once and compare with the page."""
    answers = await asyncio.gather(*(scene.asked(k).ask(keys[k]) for k in kinds))
    for kind, (answer, took) in zip(kinds, answers, strict=True):
        if row[kind] == "200":
            assert answer.status == 200, (kind, answer)
        else:
            assert_row(answer, ROWS[row[kind]])
        assert took < seconds(row["within"]) + BUSY_S, kind


async def recovered(
    scene: Scene, row: Mapping[str, str], keys: Mapping[str, str], later: str
) -> list[tuple[str, float]]:
    """Wait until everything is as before; return what took how many seconds."""
    fresh, cached = scene.fresh, scene.cached

    async def finds_new_keys() -> bool:
        status = await fresh.status(later)
        assert status != 401
        return status == 200

    async def trusts_its_memory() -> bool:
        before = await fresh.lookups("memory")
        assert await fresh.status(keys["fresh"]) in {200, 503}
        return await fresh.lookups("memory") > before

    async def uses_redis() -> bool:
        before = await cached.lookups("redis_error")
        assert await cached.status(keys["cached"]) in {200, 503}
        return await cached.lookups("redis_error") == before

    async def hears_revocations() -> bool:
        return await fresh.status(keys["meanwhile"]) == 401

    if row["meanwhile"] == "-":
        await scene.site.revoke(keys["meanwhile"])
    steps = (finds_new_keys, trusts_its_memory, uses_redis, hears_revocations)
    limit_s = seconds(row["well again"]) + BUSY_S
    took = await asyncio.gather(*(until(step, limit_s) for step in steps))
    return [(step.__name__, s) for step, s in zip(steps, took, strict=True)]


def seconds(cell: str) -> float:
    """Read a time of the page."""
    return float(cell.removesuffix(" s"))
