"""PostgreSQL's disk is full: that of its tables, or that of its log of changes."""

from __future__ import annotations

import json
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from authz.adapters.postgres import connected
from authz.core.credential import ENTROPY_BYTES, mint
from authz.errors import StoreUnavailable
from tests import rows
from tests.chaos.replicas import WITHIN_S, change, load
from tests.chaos.small_disk import fill, move, small_disk
from tests.chaos.standby import superuser_url
from tests.failing import replica, running_site, until
from tests.programs import authz
from tests.rows import assert_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.failing import Replica, Site
    from tests.programs import Ended

pytestmark = pytest.mark.chaos

SMALL_MIB = 64  # room for a database, or for some segments of the log
# One may find room in a page of an index where the next one does not.
MANY_FAILURES = 20
# No row of these fits where one of `Site.new_key` does not.
MODELS = ("llama3.1", *(f"model-{n}" for n in range(20)))
LARGE = ("--owner", "o" * 80, "--models", ",".join(MODELS))

ORPHANS = """
SELECT (SELECT count(*) FROM keys k
         WHERE NOT EXISTS (SELECT FROM secrets s WHERE s.key_id = k.id)
            OR NOT EXISTS (SELECT FROM audit a WHERE a.key_id = k.id))
     + (SELECT count(*) FROM audit a
         WHERE NOT EXISTS (SELECT FROM keys k WHERE k.id = a.key_id))
"""
COUNTS = """
SELECT (SELECT count(*) FROM keys), (SELECT count(*) FROM secrets),
       (SELECT count(*) FROM audit),
       (SELECT count(*) FROM keys WHERE name = 'never')
"""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path) as site:
        yield site


@asynccontextmanager
async def disk_for(site: Site, directory: Path) -> AsyncIterator[Path]:
    """Make a disk that PostgreSQL's user owns and that outlives the server."""
    with small_disk(SMALL_MIB, (directory / "postgres" / "data").stat()) as disk:
        try:
            yield disk
        finally:
            await site.postgres.stop()


async def as_superuser(site: Site, directory: Path, *statements: str) -> None:
    url = superuser_url(site.postgres.url, directory / "postgres")
    async with connected(url) as connection:
        for statement in statements:
            await connection.execute(statement)


async def create(site: Site, name: str, folder: Path) -> Ended:
    """Run `authz keys create` as an operator does."""
    env = {"AUTHZ_DATABASE_URL": site.postgres.url}
    words = ("--name", name, *LARGE, "--json")
    return await authz("keys", "create", *words, cwd=folder, env=env)


async def assert_creates_none(site: Site, folder: Path) -> None:
    ended = await create(site, "never", folder)
    assert (ended.status, ended.out) == (1, ""), ended
    assert ended.err.startswith("authz: the database does not answer: "), ended
    assert ended.err.count("\n") == 1, ended


async def created_while_there_is_room(site: Site) -> list[str]:
    """Create keys until there is no room for more; return those that are there."""
    created: list[str] = []
    failures = 0
    while failures < MANY_FAILURES:
        try:
            created.append(await site.new_key())
            failures = 0
        except StoreUnavailable:
            failures += 1
    return created


async def created_while_the_log_has_room(site: Site, directory: Path) -> list[str]:
    """Create keys, each in a segment of its own, until there is room for no more."""
    created: list[str] = []
    with suppress(StoreUnavailable):
        while True:
            created.append(await site.new_key())
            await as_superuser(site, directory, "SELECT pg_switch_wal()")
    return created


def creates(site: Site) -> Callable[[], Awaitable[bool]]:
    async def has_created() -> bool:
        try:
            await site.new_key()
        except StoreUnavailable:
            return False
        return True

    return has_created


def has_ended(site: Site) -> Callable[[], Awaitable[bool]]:
    async def is_gone() -> bool:
        return site.postgres.children[-1].ended

    return is_gone


async def assert_well(site: Site, replica_: Replica, folder: Path, key: str) -> None:
    """Keys are created, and a revocation is heard."""
    ended = await create(site, "after", folder)
    assert (ended.status, ended.err) == (0, ""), ended
    assert await replica_.status(json.loads(ended.out)["key"]) == 200
    await site.revoke(key)
    await change(replica_, key, 200, 401)


async def assert_whole(site: Site, created: int) -> None:
    """Each key that was said to be created is there, and no part of any other."""
    async with connected(site.postgres.url) as connection:
        assert await connection.fetchval(ORPHANS) == 0
        counts = await connection.fetchrow(COUNTS)
        assert counts is not None
        assert tuple(counts) == (created, created, created, 0)


async def test_keys_go_on_while_the_disk_of_the_tables_is_full(
    site: Site, tmp_path: Path, recovered: Callable[[str, float], None]
) -> None:
    async with disk_for(site, tmp_path) as disk:
        await as_superuser(
            site,
            tmp_path,
            f"CREATE TABLESPACE small LOCATION '{disk}'",
            "ALTER DATABASE authz SET TABLESPACE small",
        )
        async with replica(site, tmp_path / "replica") as one:
            fresh = [await site.new_key() for _ in range(5)]
            for key in fresh:
                assert await one.status(key) == 200
            async with load(one, fresh) as statuses:
                filler = fill(disk)
                created = await created_while_there_is_room(site)
                await assert_creates_none(site, tmp_path)
                assert await one.status(created[-1]) == 200
                stranger = mint(secrets.token_bytes(ENTROPY_BYTES))
                assert_row((await one.ask(stranger))[0], rows.UNAUTHORIZED)
                await assert_whole(site, len(fresh + created))
                filler.unlink()
                recovered("keys are created", await until(creates(site), WITHIN_S))
                await assert_well(site, one, tmp_path, created[-1])
        assert set(statuses) == {200}, statuses


async def test_keys_go_on_while_the_disk_of_the_log_is_full(
    site: Site, tmp_path: Path, recovered: Callable[[str, float], None]
) -> None:
    """PostgreSQL itself ends then; something must start it once there is room."""
    await site.postgres.stop()
    async with disk_for(site, tmp_path) as disk:
        move(tmp_path / "postgres" / "data" / "pg_wal", disk)
        await site.postgres.start()
        async with replica(site, tmp_path / "replica") as one:
            fresh = [await site.new_key() for _ in range(5)]
            for key in fresh:
                assert await one.status(key) == 200
            async with load(one, fresh) as statuses:
                filler = fill(disk)
                created = await created_while_the_log_has_room(site, tmp_path)
                await until(has_ended(site), WITHIN_S)
                await assert_creates_none(site, tmp_path)
                assert_row((await one.ask(created[-1]))[0], rows.UNAVAILABLE)
                filler.unlink()
                await site.postgres.stop()
                await site.postgres.start()
                found = await change(one, created[-1], 503, 200)
                recovered("keys are found", found)
                await assert_whole(site, len(fresh + created))
                await assert_well(site, one, tmp_path, created[-1])
        assert set(statuses) == {200}, statuses
