"""Redis has no memory left for what is to be shared."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from authz.core.credential import ENTROPY_BYTES, mint
from tests import rows
from tests.chaos.replicas import change, keys, load, served_from, uses_redis
from tests.failing import replica, running_site
from tests.rows import assert_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.failing import Replica, Site

pytestmark = pytest.mark.chaos

ROOM_BYTES = 4 * 1024 * 1024
JUNK = bytes(64 * 1024)
MANY = 5  # a busy machine may not answer one of them in time


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with running_site(tmp_path_factory.mktemp("redis_full")) as site:
        yield site


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replicas, and keys that are older than both: changed since for neither."""

    one: Replica
    other: Replica
    aged: list[str]


@pytest.fixture(scope="module")
async def pair(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    logs = tmp_path_factory.mktemp("pair")
    long = {"AUTHZ_CACHE_TTL_S": "300"}
    aged = [await site.new_key() for _ in range(3 * 2 * MANY)]
    async with (
        replica(site, logs / "one", **long) as one,
        replica(site, logs / "other", **long) as other,
    ):
        yield Pair(one, other, aged)


async def fill(redis: Redis, policy: str) -> None:
    """Leave a little room and use it up, until writes fail or our keys have gone."""
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory-policy", policy)
    await redis.config_set("maxmemory", used + ROOM_BYTES)
    number = 0
    try:
        while policy != "allkeys-lru" or await ours(redis):
            await redis.set(f"junk:{number}", JUNK)
            number += 1
    except OutOfMemoryError:
        assert policy != "allkeys-lru"


async def free(redis: Redis) -> None:
    async for name in redis.scan_iter("junk:*"):
        await redis.unlink(name)


async def ours(redis: Redis) -> list[bytes]:
    return [name async for name in redis.scan_iter("authz:*")]


# With no eviction, what is there can still be read.
@pytest.mark.parametrize(
    ("policy", "source"),
    [
        ("noeviction", "redis"),
        ("volatile-lru", "postgres"),
        ("allkeys-lru", "postgres"),
    ],
)
async def test_keys_go_on_while_redis_has_no_memory_left(
    site: Site,
    pair: Pair,
    policy: str,
    source: str,
    recovered: Callable[[str, float], None],
) -> None:
    one, other = pair.one, pair.other
    fresh, (revoked, refused, new) = await keys(site, 5), await keys(site, 3)
    elsewhere = [pair.aged.pop() for _ in range(MANY)]
    for key in (*fresh, *elsewhere, revoked, refused):
        assert await one.status(key) == 200
    assert await other.status(revoked) == 200
    async with Redis.from_url(site.redis.url) as redis, load(one, fresh) as statuses:
        await fill(redis, policy)
        await served_from(source, other, elsewhere)
        await served_from("postgres", one, [new])
        for key in (revoked, refused):
            await site.revoke(key)
            await change(one, key, 200, 401)
            await change(other, key, 200, 401)
        stranger = mint(secrets.token_bytes(ENTROPY_BYTES))
        assert_row((await one.ask(stranger))[0], rows.UNAUTHORIZED)
        await free(redis)
        recovered("Redis is used", await uses_redis(one, site.new_key, redis.keys))
        later = [pair.aged.pop() for _ in range(MANY)]
        for key in later:
            assert await one.status(key) == 200
        await served_from("redis", other, later)
    assert set(statuses) == {200}, statuses
