"""Old and new versions share a schema while an upgrade goes on, or is taken back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_keys import PostgresKeys
from authz.adapters.postgres_schema import Migration, migrate, shipped
from authz.core.credential import mint
from authz.core.limits import Limits
from tests.failing import replica, running_site, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from authz.adapters.postgres import Connection
    from tests.failing import Replica, Site

BUSY_S = 10.0

# What a next version may do to the tables that this one works on.
LATER = """
ALTER TABLE keys ADD COLUMN region text NOT NULL DEFAULT 'any';
ALTER TABLE secrets ADD COLUMN made_by text;
ALTER TABLE usage ADD COLUMN cached_tokens bigint NOT NULL DEFAULT 0;
ALTER TABLE usage_requests ADD COLUMN region text;
ALTER TABLE last_used ADD COLUMN address text;
CREATE TABLE regions (name text PRIMARY KEY);
CREATE INDEX keys_region ON keys (region);
"""
# As the next version would create a key: with what this one does not know.
ADD_LATER_KEY = """
WITH new AS (
    INSERT INTO keys (id, name, models, scopes, region)
    VALUES (gen_random_uuid(), $1, '{*}', '{inference}', 'north') RETURNING id
)
INSERT INTO secrets (digest, key_id, prefix, made_by) SELECT $2, id, $3, 'x' FROM new
"""


# What versions 1 to 4 sent (5 is the first with limits), by the number of the
# version: how a key is found, and how one is made.
FIND_BY_ONE = """
SELECT k.id, k.name, k.owner, k.models, k.scopes, k.disabled, k.version,
       k.revoked_at IS NOT NULL AS revoked,
       least(k.expires_at, s.expires_at) AS expires_at
  FROM secrets s JOIN keys k ON k.id = s.key_id
 WHERE s.digest = $1
"""
FIND_BY_ANY = """
SELECT s.digest, k.id, k.name, k.owner, k.models, k.scopes, k.parameters,
       k.disabled, k.version, k.revoked_at IS NOT NULL AS revoked,
       least(k.expires_at, s.expires_at) AS expires_at
  FROM secrets s JOIN keys k ON k.id = s.key_id
 WHERE s.digest = ANY(ARRAY[$1::bytea])
 ORDER BY array_position(ARRAY[$1::bytea], s.digest)
 LIMIT 1
"""
ADD_KEY = """
INSERT INTO keys (id, name, owner, models, scopes, expires_at)
VALUES ($1, $2, 'team', '{*}', '{inference}', NULL)
"""
ADD_KEY_WITH_PARAMETERS = """
INSERT INTO keys (id, name, owner, models, scopes, parameters, expires_at)
VALUES ($1, $2, 'team', '{*}', '{inference}', 'default', NULL)
"""
ADD_SECRET = "INSERT INTO secrets (digest, key_id, prefix) VALUES ($2, $1, 'nz_old')"
OLDER = {
    1: (FIND_BY_ONE, ADD_KEY),
    2: (
        FIND_BY_ONE.replace("k.disabled", "k.parameters, k.disabled"),
        ADD_KEY_WITH_PARAMETERS,
    ),
    3: (FIND_BY_ANY, ADD_KEY_WITH_PARAMETERS),
}


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    async with connected(database_url) as connection:
        yield connection


@pytest.mark.parametrize(("find", "add_key"), OLDER.values(), ids=map(str, OLDER))
async def test_versions_that_the_schema_still_serves_find_and_make_keys(
    connection: Connection, database_url: str, find: str, add_key: str
) -> None:
    key_id, digest = uuid4(), hashlib.sha256(mint(os.urandom(32)).encode()).digest()
    await connection.execute(add_key, key_id, "made by an old one")
    await connection.execute(ADD_SECRET, key_id, digest)
    row = await connection.fetchrow(find, digest)
    assert row is not None
    assert (row["id"], row["models"], row["revoked"]) == (key_id, ["*"], False)
    async with pooled(database_url) as pool:
        key = await PostgresKeys(pool).find([digest])
    assert key is not None
    assert (key.id, key.limits, key.disabled) == (str(key_id), Limits(), False)


def test_all_versions_that_may_read_are_tried() -> None:
    oldest = max(migration.oldest_reader for migration in shipped())
    # 4 added an index; what it sends is what 3 sends.
    assert {*range(oldest, shipped()[-1].version)} == {*OLDER, 4}


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with running_site(tmp_path_factory.mktemp("upgrade")) as site:
        yield site


async def test_a_service_goes_on_while_the_schema_becomes_that_of_the_next_version(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, revoked, later = (
        await site.new_key(),
        await site.new_key(),
        mint(os.urandom(32)),
    )
    async with replica(site, tmp_path / "old") as old:
        assert await old.status(revoked) == 200
        async with asking(old, key) as statuses:
            await until_more(statuses)
            async with connected(site.postgres.url) as connection:
                await migrate_further(connection, monkeypatch)
                digest = hashlib.sha256(later.encode()).digest()
                await connection.execute(ADD_LATER_KEY, "later", digest, later[:11])
            await until_more(statuses)
        assert {*statuses} == {200}
        assert await old.status(later) == 200
        await site.revoke(revoked)

        async def is_refused() -> bool:
            return await old.status(revoked) == 401

        await until(is_refused, BUSY_S)
        # Taken back: the old version starts on the new schema.
        assert await old.end_authz(signal.SIGTERM) == 0
        await old.start_authz()
        assert [await old.status(each) for each in (key, later)] == [200, 200]


async def migrate_further(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Migrate as a next version would that this one may still read after."""
    later = Migration(shipped()[-1].version + 1, LATER, shipped()[-1].version)
    with monkeypatch.context() as next_version:
        together = [*shipped(), later]
        next_version.setattr(postgres_schema, "shipped", lambda: together)
        assert await migrate(connection) == [later.version]


@asynccontextmanager
async def asking(replica: Replica, key: str) -> AsyncIterator[list[int]]:
    """Ask again and again while the block runs; yields the statuses so far."""
    statuses: list[int] = []

    async def ask() -> None:
        while True:
            statuses.append(await replica.status(key))

    clients = [asyncio.create_task(ask()) for _ in range(4)]
    try:
        yield statuses
    finally:
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)


async def until_more(statuses: list[int]) -> None:
    """Wait for some more answers."""
    enough = len(statuses) + 20

    async def are_enough() -> bool:
        return len(statuses) >= enough

    await until(are_enough, BUSY_S)
