"""A database that hangs: worse than one that is down, and just as bounded."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest
from structlog.testing import capture_logs

from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_changes import follow_changes
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_keys import PostgresKeys
from authz.errors import StoreUnavailable
from authz.issuing import issue
from tests.failing import until
from tests.proxy import Line, line_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from authz.adapters.postgres import Connection

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


class Pool(Line):
    """Keeps notifications to itself, as pools in transaction mode do."""

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        answers, behind = await self._connect()
        self.ends.append(behind)
        await asyncio.gather(
            self._forward(reader, behind), self._answer(answers, writer)
        )

    async def _answer(
        self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await answers.readexactly(5):
                rest = await answers.readexactly(int.from_bytes(head[1:]) - 4)
                if not head.startswith(b"A"):
                    writer.write(head + rest)
        writer.close()


@asynccontextmanager
async def pool_before(database_url: str) -> AsyncIterator[str]:
    pool, parts = Pool(database_url), urlsplit(database_url)
    async with await asyncio.start_server(pool.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        user = parts.netloc.rpartition("@")[0]
        netloc = f"{user}@127.0.0.1:{port}"
        yield parts._replace(netloc=netloc, query="sslmode=disable").geturl()
        pool.close()


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


async def test_a_connection_that_comes_just_as_it_is_given_up_is_ended(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = asyncpg.connect
    made: list[Connection] = []

    async def connect(url: str, **options: object) -> Connection:
        made.append(await really(url, **options))  # type: ignore[call-overload] # as it was called
        asyncio.get_running_loop().call_soon(caller.cancel)
        return made[-1]

    async def give_up() -> None:
        async with connected(database_url):
            pass

    monkeypatch.setattr(asyncpg, "connect", connect)
    caller = asyncio.create_task(give_up())
    await asyncio.wait({caller})
    assert caller.cancelled()
    assert [connection.is_closed() for connection in made] == [True]


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


async def test_where_notifications_do_not_arrive_nobody_is_said_to_listen(
    database_url: str,
) -> None:
    listener = Listener()
    with capture_logs() as logs:

        async def has_said() -> bool:
            return bool(logs)

        async with pool_before(database_url) as url:
            following = asyncio.create_task(follow_changes(url, listener))
            await until(has_said, FAR_OFF_S)
            following.cancel()
            await asyncio.wait({following})
    assert "notifications do not arrive" in logs[0]["error"]
    assert listener.heard.empty()
