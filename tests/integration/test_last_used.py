"""When a secret was last used is written in batches, and never in anybody's way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from authz.adapters import postgres_last_used
from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_last_used import LastUsed, noting_uses
from authz.errors import StoreUnavailable
from authz.issuing import issue
from tests.fakes import FakeClock
from tests.proxy import line_to

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

FAR_OFF_S = 10.0  # five times the bound: the machine may be busy


async def created(database_url: str, name: str = "ci") -> bytes:
    new, _ = issue(name, models=["*"], scopes=["read"], expires_at=None)
    async with connected(database_url) as connection:
        await PostgresKeyWriter(connection).create(new)
    return new.digest


async def written(database_url: str) -> Mapping[bytes, datetime]:
    async with connected(database_url) as connection:
        rows = await connection.fetch("SELECT digest, at FROM last_used")
    return {row["digest"]: row["at"] for row in rows}


async def test_uses_are_written_together_and_of_known_secrets_alone(
    database_url: str,
) -> None:
    clock = FakeClock()
    last_used = LastUsed(database_url, clock)
    digests = [await created(database_url, name) for name in ("a", "b")]
    for digest in (*digests, bytes(32)):
        last_used.note(digest)
    await last_used.write()
    assert await written(database_url) == dict.fromkeys(digests, clock.now)


async def test_a_secret_is_written_once_in_a_while_however_often_it_is_used(
    database_url: str,
) -> None:
    clock = FakeClock()
    digest, first = await created(database_url), clock.now
    last_used = LastUsed(database_url, clock)
    for _ in range(3):
        last_used.note(digest)
        await last_used.write()
        clock.forward(5)
    assert await written(database_url) == {digest: first}
    last_used.note_again()
    last_used.note(digest)
    await last_used.write()
    assert await written(database_url) == {digest: clock.now}


async def test_a_replica_that_is_late_does_not_turn_the_clock_back(
    database_url: str,
) -> None:
    clock = FakeClock()
    digest = await created(database_url)
    late, early = LastUsed(database_url, clock), LastUsed(database_url, clock)
    late.note(digest)
    clock.forward(60)
    early.note(digest)
    await early.write()
    await late.write()
    assert await written(database_url) == {digest: clock.now}


async def test_a_database_that_hangs_holds_nobody_up_and_gets_it_when_it_is_back(
    database_url: str,
) -> None:
    clock = FakeClock()
    digest = await created(database_url)
    async with line_to(database_url) as (line, url):
        last_used = LastUsed(url, clock)
        line.hang()
        last_used.note(digest)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await last_used.write()
        assert time.monotonic() - started < FAR_OFF_S
        line.open.set()
        await last_used.write()
    assert await written(database_url) == {digest: clock.now}


async def test_no_more_is_kept_than_the_bound(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_last_used, "MOST_SECRETS", 2)
    clock = FakeClock()
    last_used = LastUsed(database_url, clock)
    digests = [await created(database_url, name) for name in ("a", "b", "c")]
    for digest in digests:
        last_used.note(digest)
    await last_used.write()
    assert set(await written(database_url)) == set(digests[:2])


async def test_what_is_left_is_written_at_the_end(database_url: str) -> None:
    clock = FakeClock()
    digest = await created(database_url)
    async with noting_uses(database_url, clock) as last_used:
        last_used.note(digest)
    assert await written(database_url) == {digest: clock.now}


async def test_an_end_without_a_database_is_an_end() -> None:
    nowhere = "postgresql://user@127.0.0.1:1/db"
    async with noting_uses(nowhere, FakeClock()) as last_used:
        last_used.note(bytes(32))


async def test_writing_a_use_changes_no_key(database_url: str) -> None:
    digest = await created(database_url)
    async with connected(database_url) as connection:
        before = await connection.fetch("SELECT id, version, xmin::text FROM keys")
        last_used = LastUsed(database_url, FakeClock())
        last_used.note(digest)
        await last_used.write()
        after = await connection.fetch("SELECT id, version, xmin::text FROM keys")
    assert before == after
    assert await written(database_url)
