"""Migrations: applied once, by whoever comes first, and never changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.adapters.postgres_keys import check_peppers
from authz.adapters.postgres_schema import check_schema, migrate, shipped
from authz.errors import ConfigError, SchemaError
from tests.failing import until
from tests.programs import authz

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from authz.adapters.postgres import Connection
    from tests.services import Databases

BUSY_S = 10.0
MANY_SECRETS = """
WITH new AS (
    INSERT INTO keys (id, name, models, scopes)
    SELECT gen_random_uuid(), 'key ' || n, '{*}', '{read}'
      FROM generate_series(1, 20000) n
    RETURNING id, name
)
INSERT INTO secrets (key_id, digest, prefix, pepper_id)
SELECT id, sha256(name::bytea), name, CASE name WHEN 'key 1' THEN NULL ELSE 'ours' END
  FROM new
"""
OTHER_PEPPER = "UPDATE secrets SET pepper_id = 'theirs' WHERE prefix = 'key 7'"
ROWS_READ = """
SELECT sum(seq_tup_read + idx_tup_fetch)::int FROM pg_stat_xact_user_tables
 WHERE relname IN ('keys', 'secrets')
"""
SOMEBODY_WAITS = """
SELECT count(*) FROM pg_locks WHERE relation = 'secrets'::regclass AND NOT granted
"""


@pytest.fixture
async def empty_url(server: Databases) -> AsyncIterator[str]:
    async with server.fresh(migrated=False) as url:
        yield url


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    async with connected(database_url) as connection:
        yield connection


async def test_many_runners_at_once_apply_each_migration_once(empty_url: str) -> None:
    async def run() -> list[int]:
        async with connected(empty_url) as connection:
            return list(await migrate(connection))

    applied = await asyncio.gather(*(run() for _ in range(5)))
    everything = sorted(version for versions in applied for version in versions)
    assert everything == [migration.version for migration in shipped()]


async def test_a_second_run_applies_nothing(connection: Connection) -> None:
    assert await migrate(connection) == []


async def test_a_changed_migration_is_refused(connection: Connection) -> None:
    await connection.execute("UPDATE schema_migrations SET checksum = 'other'")
    with pytest.raises(SchemaError, match="0001 is not the one that was applied"):
        await migrate(connection)


async def test_a_table_in_use_is_neither_waited_for_nor_kept_from_others_for_long(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup reads the secrets while the service looks keys up in them."""
    with monkeypatch.context() as older:
        older.setattr(postgres_schema, "shipped", lambda: shipped()[:2])
        async with connected(empty_url) as connection:
            await migrate(connection)
    env = {"AUTHZ_DATABASE_URL": empty_url}
    async with connected(empty_url) as backup, connected(empty_url) as service:

        async def is_waiting() -> bool:
            return bool(await service.fetchval(SOMEBODY_WAITS))

        async with backup.transaction():
            await backup.execute("SELECT FROM secrets")
            migrating = asyncio.create_task(authz("migrate", cwd=tmp_path, env=env))
            await until(is_waiting, BUSY_S)
            await service.execute("SELECT FROM secrets", timeout=BUSY_S)
            refused = await migrating
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("authz: migration 0003 was not applied: ")
    assert refused.err.count("\n") == 1
    applied = await authz("migrate", cwd=tmp_path, env=env)
    assert applied.out.startswith("applied 0003")


async def test_the_check_of_peppers_reads_few_of_many_secrets(
    connection: Connection,
) -> None:
    await connection.execute(MANY_SECRETS)
    await connection.execute("ANALYZE")
    async with connection.transaction():
        await check_peppers(connection, ["ours"])
        assert await connection.fetchval(ROWS_READ) < 100


@pytest.mark.parametrize("given", [[], ["ours"]], ids=["none", "some"])
async def test_one_secret_of_an_unknown_pepper_is_found_among_many(
    connection: Connection, given: list[str]
) -> None:
    await connection.execute(MANY_SECRETS)
    await connection.execute(OTHER_PEPPER)
    with pytest.raises(ConfigError, match="keys are stored"):
        await check_peppers(connection, given)
    await check_peppers(connection, ["ours", "theirs"])
    await connection.execute("UPDATE keys SET revoked_at = now() WHERE name = 'key 7'")
    await check_peppers(connection, ["ours"])


async def test_an_empty_database_asks_for_migrate(empty_url: str) -> None:
    async with connected(empty_url) as connection:
        with pytest.raises(SchemaError, match="run authz migrate"):
            await check_schema(connection)


async def test_a_newer_schema_that_still_reads_is_accepted(
    connection: Connection,
) -> None:
    await pretend_migration(connection, oldest_reader=shipped()[-1].version)
    await check_schema(connection)


async def test_a_newer_schema_that_needs_a_newer_reader_is_refused(
    connection: Connection,
) -> None:
    await pretend_migration(connection, oldest_reader=9999)
    with pytest.raises(SchemaError, match="upgrade authz"):
        await check_schema(connection)


async def pretend_migration(connection: Connection, oldest_reader: int) -> None:
    await connection.execute(
        "INSERT INTO schema_migrations (version, checksum, oldest_reader) "
        "VALUES (9999, '', $1)",
        oldest_reader,
    )
