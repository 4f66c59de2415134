"""Look-ups on real stores, as several replicas have them, and what changes there."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_changes import follow_changes
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_keys import PostgresKeys
from authz.adapters.redis_cache import RedisKeyCache, entry_name
from authz.errors import CacheUnavailable
from authz.issuing import issue
from authz.lookup import Freshness, Lookup
from authz.metrics import Metrics
from authz.ports import Verified
from tests.failing import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from authz.core.model import Key
    from authz.ports import NewKey

SECRET = b"a secret of the tests"
LIFETIME = timedelta(minutes=5)
BUSY_S = 10.0  # what a busy machine may take for what is done in milliseconds
SIZE = 1000


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
                await lookup.aclose()

    async def new_key(self, name: str) -> NewKey:
        new, _ = issue(name, models=["*"], scopes=["read"], expires_at=None)
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
                found = await self.redis.get(entry_name(key.digest))
                if isinstance(found, bytes):
                    return found


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def site_on(database_url: str, redis_url: str) -> AsyncIterator[Site]:
    """Reach the stores until the block ends; Redis then has no keys of it."""
    async with (
        Redis.from_url(redis_url) as redis,
        connected(database_url) as connection,
    ):
        yield Site(database_url, redis_url, redis, PostgresKeyWriter(connection))
        # What never expires would take the room of other tests.
        async for name in redis.scan_iter("authz:key:*"):
            await redis.unlink(name)


async def all_hear(replicas: Sequence[Replica], digest: bytes) -> None:
    """Wait until each has heard of a change, and forget that it has."""
    for replica in replicas:
        await replica.ear.has_heard(digest)
        replica.ear.heard.clear()


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
