"""Keys in Redis: genuine or not there, newest version only, never in the way."""

from __future__ import annotations

import asyncio
import secrets
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from authz.adapters import redis_cache
from authz.adapters.redis_cache import RedisKeyCache, entry_name
from authz.core.allowlist import Allowlist
from authz.core.model import Key, Scope
from authz.core.parameters import parse_parameters
from authz.errors import CacheUnavailable
from authz.ports import Verified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEY = Key(
    digest=bytes(32),
    id="6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    name="n",
    owner="o",
    models=Allowlist(("a/b/c:*", "a/b/d:e")),
    scopes=frozenset({Scope.READ, Scope.INFERENCE}),
    parameters=parse_parameters("strict,num_ctx@llama3.1=8192"),
    expires_at=datetime(2030, 1, 1, tzinfo=UTC),
    disabled=False,
    revoked=False,
    version=5,
)
VERIFIED = Verified(KEY, datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=UTC))
LIFETIME = timedelta(minutes=5)


def of(digest: bytes, key: Key = KEY) -> Verified:
    return replace(VERIFIED, key=replace(key, digest=digest))


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def cache(redis: Redis) -> RedisKeyCache:
    return RedisKeyCache(redis, b"secret", LIFETIME)


@pytest.fixture
def digest() -> bytes:
    return secrets.token_bytes(32)


@pytest.mark.parametrize(
    "key", [KEY, replace(KEY, expires_at=None, revoked=True, disabled=True)]
)
async def test_what_is_put_is_got(
    cache: RedisKeyCache, digest: bytes, key: Key
) -> None:
    verified = of(digest, key)
    await cache.put(verified)
    assert await cache.get([digest]) == verified


async def test_what_is_dropped_is_gone(cache: RedisKeyCache, digest: bytes) -> None:
    await cache.put(of(digest))
    await cache.drop([digest])
    assert await cache.get([digest]) is None


async def test_an_older_version_never_replaces_a_newer_one(
    cache: RedisKeyCache, digest: bytes
) -> None:
    await cache.put(of(digest))
    old = of(digest, replace(KEY, version=4, owner="old"))
    await cache.put(old)
    assert await cache.get([digest]) == of(digest)


async def test_an_entry_ends_by_itself(
    cache: RedisKeyCache, redis: Redis, digest: bytes
) -> None:
    await cache.put(of(digest))
    left_ms = await redis.pttl(entry_name(digest))
    assert 0 < left_ms <= LIFETIME.total_seconds() * 1000


async def test_a_record_made_with_another_secret_is_not_there(
    cache: RedisKeyCache, redis: Redis, digest: bytes
) -> None:
    await RedisKeyCache(redis, b"forged", LIFETIME).put(of(digest))
    assert await cache.get([digest]) is None


async def test_a_record_moved_to_another_digest_is_not_there(
    cache: RedisKeyCache, redis: Redis, digest: bytes
) -> None:
    other = secrets.token_bytes(32)
    await cache.put(of(digest))
    await redis.copy(entry_name(digest), entry_name(other))
    assert await cache.get([other]) is None


async def test_a_record_of_another_release_is_not_there_whoever_moves_it(
    cache: RedisKeyCache, redis: Redis, digest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(redis_cache, "_LAYOUT", 1)
        await cache.put(of(digest))
        theirs = entry_name(digest)
    assert await cache.get([digest]) is None
    await redis.rename(theirs, entry_name(digest))
    assert await cache.get([digest]) is None


@pytest.mark.parametrize("record", [b"", b"{}", b"x" * 40, bytes(32) + b"{}"])
async def test_junk_is_not_there(
    cache: RedisKeyCache, redis: Redis, digest: bytes, record: bytes
) -> None:
    await redis.set(entry_name(digest), b"0" * 20 + record)
    assert await cache.get([digest]) is None


async def test_an_entry_of_another_kind_is_unavailable_not_a_crash(
    cache: RedisKeyCache, redis: Redis, digest: bytes
) -> None:
    await redis.hset(entry_name(digest), "record", "text")
    with pytest.raises(CacheUnavailable):
        await cache.get([digest])


async def test_a_redis_that_is_not_there_is_unavailable(
    tmp_path: Path, digest: bytes
) -> None:
    async with Redis.from_url(f"unix://{tmp_path}/none.sock") as nobody:
        cache = RedisKeyCache(nobody, b"secret", LIFETIME)
        with pytest.raises(CacheUnavailable):
            await cache.get([digest])


async def test_a_redis_that_hangs_is_unavailable_within_its_time(
    tmp_path: Path, digest: bytes
) -> None:
    async def hang(_reader: object, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    released = asyncio.Event()
    socket = tmp_path / "hung.sock"
    async with await asyncio.start_unix_server(hang, socket):
        async with Redis.from_url(f"unix://{socket}") as hung:
            with pytest.raises(CacheUnavailable):
                await RedisKeyCache(hung, b"secret", LIFETIME).get([digest])
        released.set()


HOSTILE = {
    "nested too deep": b"*1\r\n" * 100_000,
    "no number": b":x\r\n",
    "no length": b"$x\r\n",
    "too many digits": b"(" + b"9" * 5000 + b"\r\n",
    "a list for a name": b"%1\r\n*1\r\n:1\r\n:2\r\n",
    "an empty push": b">0\r\n",
    "nowhere to go": b"-MOVED 1 127.0.0.1:x\r\n",
    "no text": b"-\xff\xfe\r\n",
    "no type": b"?\r\n",
    "a hundred million answers": b"*100000000\r\n",
    "more than there is room for": b"$9999999999\r\n" + b"x" * 1_000_000,
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
async def test_what_no_redis_would_answer_is_unavailable(
    tmp_path: Path, digest: bytes, answer: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while command := await reader.read(65536):
                if b"HELLO" in command:
                    writer.write(b"%1\r\n+proto\r\n:3\r\n")
                writer.write(b"+OK\r\n" * command.count(b"SETINFO"))
                if b"authz:key" in command:
                    writer.write(answer)
                await writer.drain()
        writer.close()

    socket = tmp_path / "hostile.sock"
    async with (
        await asyncio.start_unix_server(serve, socket),
        Redis.from_url(f"unix://{socket}") as hostile,
    ):
        cache = RedisKeyCache(hostile, b"secret", LIFETIME)
        for use in (cache.get([digest]), cache.put(of(digest)), cache.drop([digest])):
            with suppress(CacheUnavailable):
                assert await use is None


async def test_a_redis_that_answers_without_end_costs_bounded_memory(
    tmp_path: Path, digest: bytes
) -> None:
    async def pour(_reader: object, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            writer.write(b"$9999999999\r\n")
            while True:
                writer.write(bytes(65536))
                await writer.drain()

    socket = tmp_path / "endless.sock"
    async with (
        await asyncio.start_unix_server(pour, socket),
        Redis.from_url(f"unix://{socket}") as endless,
    ):
        tracemalloc.start()
        with pytest.raises(CacheUnavailable):
            await RedisKeyCache(endless, b"secret", LIFETIME).get([digest])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 256 * 1024 * 1024


async def test_of_a_huge_entry_no_more_is_read_than_a_record_may_have(
    cache: RedisKeyCache, redis: Redis, digest: bytes
) -> None:
    await cache.put(of(digest))
    await redis.setrange(entry_name(digest), 8 * 1024 * 1024, b"}")
    tracemalloc.start()
    assert await cache.get([digest]) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await redis.unlink(entry_name(digest))
    assert peak < 4 * 1024 * 1024
