"""Migrations: applied once, by whoever comes first, and never changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from authz.adapters.postgres import connected
from authz.adapters.postgres_schema import check_schema, migrate, shipped
from authz.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from authz.adapters.postgres import Connection
    from tests.services import Databases


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
