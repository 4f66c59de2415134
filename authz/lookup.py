"""From a digest to its key: memory, Redis, PostgreSQL, and what holds in a failure.

PostgreSQL decides. What it said is fresh for the cache TTL, and only while
notifications of changes arrive; when it cannot be asked, what it said before
holds for the longest staleness, and anything else is undecided.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from authz.errors import CacheUnavailable, StoreUnavailable
from authz.ports import Verified

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from authz.core.model import Key
    from authz.metrics import Metrics
    from authz.ports import KeyCache, KeyReader


@dataclass(frozen=True, slots=True)
class Freshness:
    """How long an answer of PostgreSQL holds, and how many are remembered."""

    ttl: timedelta
    max_stale: timedelta
    size: int


class Lookup:
    """Finds keys. One instance a process, used from one event loop."""

    def __init__(
        self,
        store: KeyReader,
        cache: KeyCache | None,
        freshness: Freshness,
        now: Callable[[], datetime],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._cache = cache
        self._freshness = freshness
        self._now = now
        self._metrics = metrics
        self._memory: dict[bytes, Verified] = {}
        self._flights: dict[bytes, asyncio.Task[Key | None]] = {}
        self._changed: set[bytes] = set()
        self._listening_since: datetime | None = None

    async def find(self, digest: bytes) -> Key | None:
        """Return the key of a digest. Raises StoreUnavailable: undecided."""
        known = self._memory.get(digest)
        if known is not None and self._is_fresh(known):
            self._metrics.found_in_memory.inc()
            return known.key
        flight = self._flights.get(digest)
        if flight is None:
            flight = asyncio.create_task(self._load(digest, known))
            self._flights[digest] = flight
            flight.add_done_callback(lambda done: self._land(digest, done))
        # A caller that gives up must not take the others' answer along.
        return await asyncio.shield(flight)

    async def changed(self, digest: bytes) -> None:
        """Forget a key, here and in Redis, because its row has changed.

        Redis may hold the old row for a while yet: the drop may fail, and another
        replica that read it before may put it back. So the next look-up asks
        PostgreSQL.
        """
        self._memory.pop(digest, None)
        self._changed.add(digest)
        if len(self._changed) > self._freshness.size:
            self.listening()
        # A look-up under way may have read the old row: nobody may join it now,
        # and what it finds is not remembered.
        self._flights.pop(digest, None)
        if self._cache is not None:
            try:
                await self._cache.drop(digest)
            except CacheUnavailable:
                self._metrics.lookups.labels("redis_error").inc()

    def listening(self) -> None:
        """Notifications arrive from now on; what was verified before is not fresh."""
        self._listening_since = self._now()
        self._flights.clear()
        self._changed.clear()

    def deaf(self) -> None:
        """Notifications may be lost: nothing is fresh until `listening`."""
        self._listening_since = None

    async def _load(self, digest: bytes, known: Verified | None) -> Key | None:
        shared = await self._shared(digest)
        changed = digest in self._changed
        if shared is not None and not changed and self._is_fresh(shared):
            self._remember(digest, shared)
            self._metrics.lookups.labels("redis").inc()
            return shared.key
        asked_at = self._now()
        try:
            key = await self._store.find(digest)
        except StoreUnavailable as error:
            return self._last_known(error, known, None if changed else shared)
        self._metrics.lookups.labels("postgres").inc()
        verified = Verified(key, asked_at) if key is not None else None
        if self._remember(digest, verified) and verified is not None:
            self._changed.discard(digest)
            await self._share(digest, verified)
        return key

    def _last_known(self, error: StoreUnavailable, *answers: Verified | None) -> Key:
        newest = max((a for a in answers if a), key=lambda a: a.at, default=None)
        if newest is None or self._age(newest) >= self._freshness.max_stale:
            self._metrics.lookups.labels("undecided").inc()
            raise error
        self._metrics.lookups.labels("stale").inc()
        return newest.key

    def _remember(self, digest: bytes, verified: Verified | None) -> bool:
        """Put into memory what the current flight found; False if it is outdated."""
        if self._flights.get(digest) is not asyncio.current_task():
            return False
        self._memory.pop(digest, None)
        if verified is not None:
            if len(self._memory) >= self._freshness.size:
                del self._memory[next(iter(self._memory))]
            self._memory[digest] = verified
        return True

    async def _shared(self, digest: bytes) -> Verified | None:
        if self._cache is None:
            return None
        try:
            return await self._cache.get(digest)
        except CacheUnavailable:
            self._metrics.lookups.labels("redis_error").inc()
            return None

    async def _share(self, digest: bytes, verified: Verified) -> None:
        if self._cache is None:
            return
        try:
            await self._cache.put(digest, verified)
        except CacheUnavailable:
            self._metrics.lookups.labels("redis_error").inc()

    def _land(self, digest: bytes, done: asyncio.Task[Key | None]) -> None:
        if self._flights.get(digest) is done:
            del self._flights[digest]
        if not done.cancelled():
            done.exception()  # seen, also where every caller has gone

    def _is_fresh(self, verified: Verified) -> bool:
        since = self._listening_since
        if since is None or verified.at < since:
            return False
        return self._age(verified) < self._freshness.ttl

    def _age(self, verified: Verified) -> timedelta:
        return self._now() - verified.at
