"""A database that hangs: worse than one that is down, and just as bounded."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import pytest

from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_changes import follow_changes
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_keys import PostgresKeys
from authz.errors import StoreUnavailable
from authz.issuing import issue
from tests.proxy import line_to

DIGEST = bytes(32)
ABSURD = ("", "junk", "\u00e9", "00" * 3000, "ff", "ff" * 31, " ".join(["ff"] * 32))
FAR_OFF_S = 5.0  # ten times every bound: the machine may be busy


class Listener:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[str | bytes] = asyncio.Queue()

    def changed(self, digest: bytes) -> None:
        self.heard.put_nowait(digest)

    def listening(self) -> None:
        self.heard.put_nowait("listening")

    def deaf(self) -> None:
        self.heard.put_nowait("deaf")

    async def next(self) -> str | bytes:
        return await asyncio.wait_for(self.heard.get(), FAR_OFF_S)


async def test_a_database_that_hangs_is_unavailable_within_its_time(
    database_url: str,
) -> None:
    async with line_to(database_url) as (line, url), pooled(url) as pool:
        keys = PostgresKeys(pool)
        assert await keys.find([DIGEST]) is None
        line.hang()
        started = time.monotonic()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await keys.find([DIGEST])
        assert time.monotonic() - started < FAR_OFF_S
        line.open.set()
        assert await keys.find([DIGEST]) is None


async def test_of_several_hosts_the_one_that_answers_and_may_write_is_used(
    database_url: str,
) -> None:
    parts = urlsplit(database_url)
    if parts.hostname:
        user, _, host = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=f"{user}@127.0.0.1:1,{host}")
    else:
        query = parts.query.replace("host=", "host=/nowhere,")
        parts = parts._replace(query=query)
    separator = "&" if parts.query else ""
    query = f"{parts.query}{separator}target_session_attrs=read-write"
    async with pooled(parts._replace(query=query).geturl()) as pool:
        assert await PostgresKeys(pool).find([DIGEST]) is None


async def test_hosts_of_which_none_may_be_written_to_are_unavailable(
    database_url: str,
) -> None:
    separator = "&" if urlsplit(database_url).query else "?"
    url = f"{database_url}{separator}target_session_attrs=standby"
    async with pooled(url) as pool:
        with pytest.raises(StoreUnavailable):
            await PostgresKeys(pool).find([DIGEST])


async def test_a_change_is_heard_and_a_line_that_hangs_is_noticed(
    database_url: str,
) -> None:
    listener = Listener()
    async with line_to(database_url) as (line, url):
        following = asyncio.create_task(follow_changes(url, listener))
        assert await listener.next() == "listening"
        new, _ = issue("a", models=["*"], scopes=["read"], expires_at=None)
        async with connected(database_url) as connection:
            await PostgresKeyWriter(connection).create(new)
            assert await listener.next() == new.digest
            await PostgresKeyWriter(connection).revoke("a")
            assert await listener.next() == new.digest
        line.hang()
        assert await listener.next() == "deaf"
        line.open.set()
        assert await listener.next() == "listening"
        following.cancel()
        await asyncio.wait({following})
        assert await listener.next() == "deaf"


async def test_a_notification_of_anybody_is_only_a_hint(database_url: str) -> None:
    listener = Listener()
    following = asyncio.create_task(follow_changes(database_url, listener))
    assert await listener.next() == "listening"
    async with connected(database_url) as connection:
        for payload in (*ABSURD, DIGEST.hex()):
            await connection.execute("SELECT pg_notify('authz_keys', $1)", payload)
    assert await listener.next() == DIGEST
    following.cancel()
    await asyncio.wait({following})
