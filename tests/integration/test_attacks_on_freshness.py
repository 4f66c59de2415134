"""Attacks on what is remembered of a key: through Redis, NOTIFY and slow readers.

Two kinds of replicas are asked: one that has heard of the change, and one that has
started after it. Both must say what PostgreSQL has.
"""

from __future__ import annotations

import asyncio
import json
import resource
import secrets
import time
import tracemalloc
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_changes import CHANNEL, follow_changes
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_keys import PostgresKeys
from authz.adapters.redis_cache import RedisKeyCache
from authz.errors import CacheUnavailable
from authz.issuing import issue
from authz.lookup import Freshness, Lookup
from authz.metrics import Metrics
from authz.ports import KeyChanges, Verified
from tests.failing import until
from tests.proxy import line_to, line_to_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from authz.core.model import Key
    from authz.ports import NewKey
    from tests.services import Databases

SECRET = b"a secret of the tests"
LIFETIME = timedelta(minutes=5)
VERSION_DIGITS = 20
BUSY_S = 10.0  # what a busy machine may take for what is done in milliseconds
HUGE = 8 * 1024 * 1024  # the Redis of the tests has room for 64 MiB
SIZE = 1000
OLD_MODELS, NEW_MODELS = ("*",), ("registry.ollama.ai/library/mistral:latest",)


@dataclass
class Ear:
    """Passes on to a Lookup what is heard, and lets a test wait for it."""

    lookup: Lookup
    listens: asyncio.Event = field(default_factory=asyncio.Event)
    heard: set[bytes] = field(default_factory=set)

    def changed(self, digest: bytes) -> None:
        self.lookup.changed(digest)
        self.heard.add(digest)

    def listening(self) -> None:
        self.lookup.listening()
        self.listens.set()

    def deaf(self) -> None:
        self.lookup.deaf()
        self.listens.clear()

    async def has_heard(self, digest: bytes) -> None:
        async def heard() -> bool:
            return digest in self.heard

        await until(heard, BUSY_S)


@dataclass
class Replica:
    """A Lookup on real stores."""

    lookup: Lookup
    ear: Ear
    registry: CollectorRegistry

    async def find(self, digest: bytes) -> Key:
        key = await self.lookup.find([digest])
        assert key is not None
        return key

    def answered_by(self, source: str) -> float:
        labels = {"source": source}
        return self.registry.get_sample_value("authz_lookups_total", labels) or 0


@dataclass(frozen=True, slots=True)
class Urls:
    """Where a replica reads rows, hears of changes, and shares."""

    rows: str
    changes: str
    redis: str


@dataclass
class Site:
    """The stores as an administrator, and an attacker, reaches them."""

    database_url: str
    redis_url: str
    redis: Redis
    keys: PostgresKeyWriter

    @asynccontextmanager
    async def replica(
        self, urls: Urls | None = None, size: int = SIZE
    ) -> AsyncIterator[Replica]:
        """Run a replica, through lines if there are any."""
        urls = urls or Urls(self.database_url, self.database_url, self.redis_url)
        freshness = Freshness(timedelta(seconds=60), LIFETIME, size, 1_000_000)
        registry = CollectorRegistry()
        async with (
            Redis.from_url(urls.redis) as redis,
            pooled(urls.rows) as pool,
        ):
            cache = RedisKeyCache(redis, SECRET, LIFETIME)
            lookup = Lookup(
                PostgresKeys(pool), cache, freshness, now, Metrics(registry)
            )
            ear = Ear(lookup)
            following = asyncio.create_task(follow_changes(urls.changes, ear))
            try:
                async with asyncio.timeout(BUSY_S):
                    await ear.listens.wait()
                yield Replica(lookup, ear, registry)
            finally:
                following.cancel()
                await asyncio.wait([following])

    async def new_key(self, name: str) -> NewKey:
        new, _ = issue(name, models=OLD_MODELS, scopes=["read"], expires_at=None)
        await self.keys.create(new)
        return new

    async def entry(self, key: Key) -> bytes:
        """Return what a replica has just put into Redis, as an attacker may keep it.

        The replicas may not have dropped yet what was there before the key was made.
        """
        cache = RedisKeyCache(self.redis, SECRET, LIFETIME)
        async with asyncio.timeout(BUSY_S):
            while True:
                with suppress(CacheUnavailable):
                    await cache.put(Verified(key, now()))
                found = await self.redis.get(entry_of(key.digest))
                if isinstance(found, bytes):
                    return found


def now() -> datetime:
    return datetime.now(UTC)


def entry_of(digest: bytes) -> str:
    return f"authz:key:3:{digest.hex()}"


@pytest.fixture
async def site(database_url: str, redis_url: str) -> AsyncIterator[Site]:
    async with (
        Redis.from_url(redis_url) as redis,
        connected(database_url) as connection,
    ):
        yield Site(database_url, redis_url, redis, PostgresKeyWriter(connection))
        # What never expires would take the room of other tests.
        async for name in redis.scan_iter("authz:key:3:*"):
            await redis.unlink(name)


@dataclass(frozen=True, slots=True)
class Loot:
    """What an attacker has of a key: its entry of before the change, and another's."""

    digest: bytes
    before: bytes
    of_other: bytes

    @property
    def name(self) -> str:
        return entry_of(self.digest)

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
        old = {entry_of(row.digest): await site.entry(row) for row in rows}

        async with repeated(lambda: site.redis.mset(old)):
            for new in keys:
                await site.keys.revoke(new.name)
                await all_hear([first, second], new.digest)
                for replica in (first, second):
                    assert (await replica.find(new.digest)).revoked
            async with site.replica() as restarted:
                assert all([(await restarted.find(n.digest)).revoked for n in keys])


async def test_a_slow_reader_that_refills_redis_after_the_delete_is_not_believed(
    site: Site,
) -> None:
    """Its write waits on the line while the key is revoked and dropped."""
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
        old = await site.redis.get(entry_of(new.digest))
        async with site.replica() as restarted:
            for replica in (hears, restarted):
                await site.redis.set(entry_of(new.digest), old or b"")
                assert (await replica.find(new.digest)).revoked


async def all_hear(replicas: Sequence[Replica], digest: bytes) -> None:
    """Wait until each has heard of a change, and forget that it has."""
    for replica in replicas:
        await replica.ear.has_heard(digest)
        replica.ear.heard.clear()


NOTIFY = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"
FLOODS, PAYLOADS = 4, 5000
MOST_GROWTH = 32 * 1024 * 1024


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def absurd_payloads(keys: Sequence[bytes]) -> list[str]:
    """Make payloads, most of which look like those of a change."""
    digests = [*(key.hex() for key in keys), secrets.token_hex(32)]
    shapes = [
        *("", " ", "x" * 7999, "\x01\x7f" * 3000, "\N{PILE OF POO}" * 1999),
        *(shape for d in digests for shape in (d.upper(), d[1:], d + "0", f"{d}\n")),
        *(json.dumps({"digest": digest, "revoked": False}) for digest in digests),
        *("\uff11" * 64, "'; DROP TABLE keys; --", "authz_keys", "0" * 64),
        *digests,
    ]
    fill = [secrets.token_hex(32) for _ in range(PAYLOADS - len(shapes) - 200)]
    long = [secrets.token_hex(3999) for _ in range(200)]
    return [*shapes, *fill, *long]


async def forge(url: str, payloads: Sequence[str]) -> None:
    async with connected(url) as anybody:
        await anybody.execute("SET statement_timeout = 0")
        await anybody.fetch(NOTIFY, CHANNEL, payloads)


async def test_a_flood_of_forged_notifications_costs_neither_right_answers_nor_memory(
    site: Site, server: Databases, record_property: Callable[[str, object], None]
) -> None:
    good, bad = await site.new_key("good"), await site.new_key("bad")
    unknown = secrets.token_bytes(32)
    async with server.role(site.database_url) as anybody, site.replica() as replica:
        assert not (await replica.find(bad.digest)).revoked

        async def ask() -> None:
            assert await replica.lookup.find([unknown]) is None
            assert (await replica.find(good.digest)).name == "good"
            await asyncio.sleep(0)

        async def refused() -> bool:
            return (await replica.find(bad.digest)).revoked

        async def flood() -> None:
            await forge(anybody, payloads)

        payloads = absurd_payloads([good.digest, bad.digest])
        await flood()
        await all_hear([replica], good.digest)
        before = resident_bytes()  # what is kept is full
        async with repeated(ask), repeated(flood):
            await all_hear([replica], good.digest)
            await site.keys.revoke("bad")
            record_property("refused after", await until(refused, BUSY_S))
            for _ in range(FLOODS):
                await all_hear([replica], good.digest)
        assert resident_bytes() - before < MOST_GROWTH
        assert (await replica.find(good.digest)).name == "good"


async def test_forged_notifications_of_a_key_cost_a_look_up_each_at_the_most(
    site: Site, server: Databases
) -> None:
    new = await site.new_key("key")
    async with server.role(site.database_url) as anybody, site.replica() as replica:
        row = await replica.find(new.digest)
        before = replica.answered_by("postgres")
        for _ in range(20):
            await forge(anybody, [new.digest.hex()])
            for _ in range(10):
                assert await replica.find(new.digest) == row
        await all_hear([replica], new.digest)
        assert replica.answered_by("postgres") - before <= 20


@asynccontextmanager
async def repeated(step: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Do something again and again for the length of the block."""
    stop = asyncio.Event()

    async def repeat() -> None:
        while not stop.is_set():
            await step()

    repeating = asyncio.create_task(repeat())
    try:
        yield
    finally:
        stop.set()
        await repeating


async def times(site: Site, command: str) -> int:
    """Return how often Redis has run a command."""
    stats = await site.redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def more_than(before: int, site: Site, command: str) -> bool:
    return await times(site, command) > before


async def is_there(site: Site, digest: bytes) -> bool:
    return bool(await site.redis.exists(entry_of(digest)))
