"""How late a change of a key is heard of, by what PostgreSQL says of its moment."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from authz.adapters.postgres import connected
from authz.adapters.postgres_changes import CHANNEL, MOMENTS, follow_changes
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.issuing import issue
from tests.integration.test_postgres_faults import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BUSY_S = 10.0
ABSURD = (
    "",
    "junk",
    "-1795271203173",
    "9" * 12,
    "9" * 14,
    "9" * 4000,
    "1e12",
    "٣" * 13,
)


@asynccontextmanager
async def following(
    url: str,
) -> AsyncIterator[tuple[Listener, asyncio.Queue[float]]]:
    listener = Listener()
    moments: asyncio.Queue[float] = asyncio.Queue()
    task = asyncio.create_task(follow_changes(url, listener, moments.put_nowait))
    try:
        assert await listener.next() == "listening"
        yield listener, moments
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_change_says_its_moment_once_and_its_digest_to_older_services(
    database_url: str,
) -> None:
    new, _ = issue("k", models=["*"], scopes=["read"], expires_at=None)
    async with connected(database_url) as connection:
        await PostgresKeyWriter(connection).create(new)
        async with following(database_url) as (listener, moments):
            before = time.time()
            await PostgresKeyWriter(connection).revoke("k")
            async with asyncio.timeout(BUSY_S):
                moment = await moments.get()
            assert before - 1 < moment < time.time() + 1
            assert await listener.next() == new.digest
            assert moments.empty()


async def test_forged_moments_are_not_taken_for_any(database_url: str) -> None:
    async with (
        connected(database_url) as connection,
        following(database_url) as (listener, moments),
    ):
        for payload in ABSURD:
            await connection.execute("SELECT pg_notify($1, $2)", MOMENTS, payload)
        await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, "00" * 32)
        assert await listener.next() == bytes(32)
        assert moments.empty()
