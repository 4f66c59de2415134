"""Attacks on what is remembered of a key, through Redis and by slow readers of it.

Two kinds of replicas are asked: one that has heard of the change, and one that has
started after it. Both must say what PostgreSQL has.
"""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from authz.adapters import redis_cache
from authz.adapters.postgres import pooled
from authz.adapters.postgres_keys import PostgresKeys
from authz.adapters.redis_cache import RedisKeyCache, entry_name
from authz.ports import KeyChanges
from tests.failing import until
from tests.lookups import (
    BUSY_S,
    LIFETIME,
    SECRET,
    Urls,
    all_hear,
    now,
    repeated,
    site_on,
)
from tests.proxy import line_to, line_to_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from redis.asyncio import Redis

    from authz.core.model import Key
    from authz.ports import NewKey
    from tests.lookups import Replica, Site

VERSION_DIGITS = 20
HUGE = 8 * 1024 * 1024  # the Redis of the tests has room for 64 MiB
NEW_MODELS = ("registry.ollama.ai/library/mistral:latest",)


@pytest.fixture
async def site(database_url: str, redis_url: str) -> AsyncIterator[Site]:
    async with site_on(database_url, redis_url) as site:
        yield site


@dataclass(frozen=True, slots=True)
class Loot:
    """What an attacker has of a key: its entry of before the change, and another's."""

    digest: bytes
    before: bytes
    of_other: bytes

    @property
    def name(self) -> str:
        return entry_name(self.digest)

    @property
    def good_record(self) -> bytes:
        """What the attacker wants to be believed."""
        record = json.loads(self.before[VERSION_DIGITS + 32 :])
        changed = {"version": 10**9, "revoked": False, "disabled": False}
        return json.dumps(record | changed | {"at": now().isoformat()}).encode()


async def roll_back(redis: Redis, loot: Loot) -> None:
    await redis.set(loot.name, loot.before, ex=60)


async def roll_back_for_ever(redis: Redis, loot: Loot) -> None:
    await redis.set(loot.name, loot.before)


async def roll_back_as_newest(redis: Redis, loot: Loot) -> None:
    await redis.set(loot.name, b"9" * VERSION_DIGITS + loot.before[VERSION_DIGITS:])


async def copy_from_another_key(redis: Redis, loot: Loot) -> None:
    await redis.set(loot.name, loot.of_other)


async def mint_without_mac(redis: Redis, loot: Loot) -> None:
    version = b"1".zfill(VERSION_DIGITS)
    await redis.set(loot.name, version + bytes(32) + loot.good_record)


async def mint_with_the_mac_of_another_record(redis: Redis, loot: Loot) -> None:
    sealed = loot.before[: VERSION_DIGITS + 32]
    await redis.set(loot.name, sealed + loot.good_record)


async def mint_with_own_secret(redis: Redis, loot: Loot) -> None:
    forger = RedisKeyCache(redis, b"a guess", LIFETIME)
    genuine = RedisKeyCache(redis, SECRET, LIFETIME)
    await redis.set(loot.name, loot.before)
    known = await genuine.get([loot.digest])
    assert known is not None
    await redis.delete(loot.name)
    await forger.put(known)


async def make_huge(redis: Redis, loot: Loot) -> None:
    await redis.set(loot.name, loot.before)
    await redis.setrange(loot.name, HUGE - 1, b"}")


async def make_a_list(redis: Redis, loot: Loot) -> None:
    await redis.delete(loot.name)
    await redis.rpush(loot.name, loot.before)


async def garble(redis: Redis, loot: Loot) -> None:
    await redis.set(loot.name, bytes(range(256)) * 16)


async def cut_short(redis: Redis, loot: Loot) -> None:
    await redis.set(loot.name, loot.before[:-1])


async def flip_a_bit(redis: Redis, loot: Loot) -> None:
    flipped = loot.before.replace(b'"disabled": false', b'"disabled": falsE')
    await redis.set(loot.name, flipped[:-1] + bytes([flipped[-1] ^ 1]))


ATTACKS: Sequence[Callable[[Redis, Loot], Awaitable[None]]] = (
    *(roll_back, roll_back_for_ever, roll_back_as_newest, copy_from_another_key),
    *(mint_without_mac, mint_with_the_mac_of_another_record, mint_with_own_secret),
    *(make_huge, make_a_list, garble, cut_short, flip_a_bit),
)


async def changed_keys(site: Site, first: Replica) -> list[tuple[Loot, Key]]:
    """Make keys, have them cached, and change each in another way.

    Returns what an attacker has kept of them, and what they are now.
    """
    names = ("other", "revoked", "restricted", "enabled")
    other, revoked, restricted, enabled = [await site.new_key(n) for n in names]
    await site.keys.update("enabled", KeyChanges(disabled=True))
    await first.ear.has_heard(enabled.digest)
    of_other = await site.entry(await first.find(other.digest))
    changed = (revoked, restricted, enabled)
    rows = [await first.find(new.digest) for new in changed]
    loot = [Loot(row.digest, await site.entry(row), of_other) for row in rows]
    first.ear.heard.clear()
    await site.keys.revoke("revoked")
    await site.keys.update("restricted", KeyChanges(models=NEW_MODELS))
    await site.keys.update("enabled", KeyChanges(disabled=False))
    for new in changed:
        await first.ear.has_heard(new.digest)
    return list(zip(loot, await rows_of(site, changed), strict=True))


async def rows_of(site: Site, keys: Sequence[NewKey]) -> list[Key]:
    async with pooled(site.database_url) as pool:
        found = [await PostgresKeys(pool).find([new.digest]) for new in keys]
    return [key for key in found if key is not None]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_nothing_that_an_attacker_writes_into_redis_is_served(
    site: Site, attack: Callable[[Redis, Loot], Awaitable[None]]
) -> None:
    async with site.replica() as hears, site.replica() as cold:
        changed = await changed_keys(site, hears)
        for loot, row in changed:
            await cold.ear.has_heard(loot.digest)
            await attack(site.redis, loot)
            assert await hears.find(loot.digest) == row
            await attack(site.redis, loot)
            assert await cold.find(loot.digest) == row
        for loot, _ in changed:
            await attack(site.redis, loot)
        async with site.replica() as restarted:
            for loot, row in changed:
                assert await restarted.find(loot.digest) == row


async def test_a_record_rolled_back_after_it_was_forgotten_is_not_served(
    site: Site,
) -> None:
    """Neither memory nor the list of changes has the key any more."""
    async with site.replica(size=2) as replica:
        (loot, row), *_ = await changed_keys(site, replica)
        assert await replica.find(loot.digest) == row
        for number in range(4):
            await replica.find((await site.new_key(f"later {number}")).digest)
        await roll_back(site.redis, loot)
        assert await replica.find(loot.digest) == row


async def test_a_huge_entry_costs_neither_memory_nor_time(site: Site) -> None:
    new = await site.new_key("huge")
    async with site.replica() as first, site.replica() as second:
        entry = await site.entry(await first.find(new.digest))
        await make_huge(site.redis, Loot(new.digest, entry, b""))
        tracemalloc.start()
        started = time.monotonic()
        assert (await second.find(new.digest)).name == "huge"
        took = time.monotonic() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < HUGE / 4
    assert took < BUSY_S


async def test_revocations_hold_while_old_records_are_written_in_a_loop(
    site: Site,
) -> None:
    keys = [await site.new_key(f"key {number}") for number in range(5)]
    async with site.replica() as first, site.replica() as second:
        rows = [await first.find(new.digest) for new in keys]
        rows = [await second.find(new.digest) for new in keys]
        old = {entry_name(row.digest): await site.entry(row) for row in rows}

        async with repeated(lambda: site.redis.mset(old)):
            for new in keys:
                await site.keys.revoke(new.name)
                await all_hear([first, second], new.digest)
                for replica in (first, second):
                    assert (await replica.find(new.digest)).revoked
            async with site.replica() as restarted:
                assert all([(await restarted.find(n.digest)).revoked for n in keys])


async def test_a_slow_reader_that_refills_redis_after_the_delete_is_not_believed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its write waits on the line while the key is revoked and dropped."""
    # On a busy machine its question would be given up before it reaches Redis.
    monkeypatch.setattr(redis_cache, "TIMEOUT_S", BUSY_S)
    new, another = await site.new_key("key"), await site.new_key("another")
    async with (
        site.replica() as hears,
        line_to(site.database_url) as (rows, rows_url),
        line_to(site.database_url) as (changes, changes_url),
        line_to_redis(site.redis_url) as (shared, shared_url),
        site.replica(Urls(rows_url, changes_url, shared_url)) as slow,
    ):
        await slow.find(another.digest)  # it has connected
        changes.hang()
        rows.hang()
        asked = await times(site, "getrange")
        reading = asyncio.create_task(slow.find(new.digest))
        await until(lambda: more_than(asked, site, "getrange"), BUSY_S)
        shared.hang()
        rows.mend()
        assert not (await reading).revoked
        dropped = await times(site, "unlink")
        await site.keys.revoke("key")
        await until(lambda: more_than(dropped, site, "unlink"), BUSY_S)
        shared.mend()
        await until(lambda: is_there(site, new.digest), BUSY_S)
        old = await site.redis.get(entry_name(new.digest))
        async with site.replica() as restarted:
            for replica in (hears, restarted):
                await site.redis.set(entry_name(new.digest), old or b"")
                assert (await replica.find(new.digest)).revoked


async def times(site: Site, command: str) -> int:
    """Return how often Redis has run a command."""
    stats = await site.redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def more_than(before: int, site: Site, command: str) -> bool:
    return await times(site, command) > before


async def is_there(site: Site, digest: bytes) -> bool:
    return bool(await site.redis.exists(entry_name(digest)))
