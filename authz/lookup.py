"""From a digest to its key: memory, Redis, PostgreSQL, and what holds in a failure.

PostgreSQL decides. What it said is fresh for the cache TTL, and only while
notifications of changes arrive; when it cannot be asked, what it said before
holds for the longest staleness, and anything else is undecided.

A key has one digest for every pepper that it may be stored under; memory and Redis
know it by the one that it is stored under, which is what notifications name.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from authz.errors import StoreUnavailable
from authz.ports import Verified
from authz.shared import Shared
from authz.strangers import Strangers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from authz.core.model import Key
    from authz.metrics import Metrics
    from authz.ports import KeyCache, KeyReader

_NOW = timedelta(0)
# As short as that, for a notification of a new key that goes astray.
_UNKNOWN_TTL = timedelta(seconds=5)
_MOST_UNKNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Freshness:
    """How long an answer of PostgreSQL holds, and how much is remembered or asked."""

    ttl: timedelta
    max_stale: timedelta
    size: int
    misses_per_s: float


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
        self._shared = Shared(cache, freshness.size, metrics)
        self._freshness = freshness
        self._now = now
        self._metrics = metrics
        self._memory: dict[bytes, Verified] = {}
        # Those in memory that were verified since notifications arrive: a clock may
        # have been set back meanwhile.
        self._current: set[bytes] = set()
        self._unknown: dict[bytes, datetime] = {}
        self._flights: dict[bytes, asyncio.Task[Key | None]] = {}
        self._listening_since: datetime | None = None
        self._heard_since: datetime | None = None
        self._strangers = Strangers(store, freshness.misses_per_s, now, metrics)

    async def find(self, digests: Sequence[bytes], source: str = "") -> Key | None:
        """Return the key that has one of the digests; ``source`` is who asks.

        Raises StoreUnavailable: undecided.
        """
        known = None
        for digest in digests:
            known = self._memory.get(digest)
            if known is not None:
                break
        if known is not None:
            in_time = self._is_fresh(known.at, self._freshness.ttl)
            if in_time and digest in self._current:
                self._metrics.found_in_memory.inc()
                return known.key
        elif self._is_known_to_nobody(digests):
            self._metrics.lookups.labels("memory").inc()
            return None
        elif not self._shared.is_expected(digests):
            self._strangers.refuse_excess(source)
        flight = self._under_way(digests)
        if flight is None:
            flight = asyncio.create_task(self._load(digests, known, source))
            self._flights.update(dict.fromkeys(digests, flight))
            flight.add_done_callback(partial(self._land, digests))
        # A caller that gives up must not take the others' answer along.
        return await asyncio.shield(flight)

    def changed(self, digest: bytes) -> None:
        """Forget a key, here and in Redis, because its row has changed or is new."""
        self._memory.pop(digest, None)
        self._current.discard(digest)
        self._unknown.pop(digest, None)
        # A look-up under way may have read the old row: nobody may join it now,
        # and what it finds is not remembered.
        self._flights.pop(digest, None)
        if not self._shared.changed(digest):
            self._make_room()
            self._shared.changed(digest)

    def listening(self) -> None:
        """Notifications arrive from now on; what was verified before is not fresh."""
        self._listening_since = self._now()
        self._metrics.listening.set(1)
        self._heard_since = self._heard_since or self._listening_since
        self._flights.clear()
        self._current.clear()
        self._unknown.clear()

    def deaf(self) -> None:
        """Notifications may be lost: nothing is fresh until `listening`."""
        self._listening_since = None
        self._metrics.listening.set(0)

    async def aclose(self) -> None:
        """End what is under way in the background, before the stores are closed.

        A client of Redis that is used after that would connect again.
        """
        await self._shared.aclose()

    def _make_room(self) -> None:
        """Forget which keys have changed: so nothing holds without asking."""
        self._shared.forget_changes(self._now())
        if self._listening_since is not None:
            self.listening()

    async def _load(
        self, digests: Sequence[bytes], known: Verified | None, source: str
    ) -> Key | None:
        shared = await self._shared.get(digests)
        if shared is not None and self._is_fresh(shared.at, self._freshness.ttl):
            self._remember(digests, shared)
            self._metrics.lookups.labels("redis").inc()
            return shared.key
        asked_at = self._now()
        try:
            if known or shared or self._shared.is_expected(digests):
                key = await self._store.find(digests)
            else:
                key = await self._strangers.find(digests, source)
        except StoreUnavailable as error:
            if self._under_way(digests) is not asyncio.current_task():
                raise  # it has changed meanwhile
            return self._last_known(error, known, self._if_heard_of(shared))
        self._metrics.lookups.labels("postgres").inc()
        if key is None:
            self._shared.absent(digests)
            self._remember_unknown(digests, asked_at)
        elif self._remember(digests, verified := Verified(key, asked_at)):
            self._shared.put(verified)
        return key

    def _if_heard_of(self, shared: Verified | None) -> Verified | None:
        """Take what others verified for true if we would know of a change since.

        What is older may have been put back into Redis after a revocation.
        """
        since = self._heard_since
        return shared if shared and since and shared.at >= since else None

    def _last_known(self, error: StoreUnavailable, *answers: Verified | None) -> Key:
        newest = max((a for a in answers if a), key=lambda a: a.at, default=None)
        if newest is None or not self._is_recent(newest.at, self._freshness.max_stale):
            self._metrics.lookups.labels("undecided").inc()
            raise error
        self._metrics.lookups.labels("stale").inc()
        return newest.key

    def _remember(self, digests: Sequence[bytes], verified: Verified) -> bool:
        """Put into memory what the current flight found; False if it is outdated."""
        if self._under_way(digests) is not asyncio.current_task():
            return False
        digest = verified.key.digest
        self._memory.pop(digest, None)
        if len(self._memory) >= self._freshness.size:
            oldest = next(iter(self._memory))
            del self._memory[oldest]
            self._current.discard(oldest)
        self._memory[digest] = verified
        self._current.add(digest)
        return True

    def _remember_unknown(self, digests: Sequence[bytes], at: datetime) -> None:
        if self._under_way(digests) is not asyncio.current_task():
            return
        for digest in digests:
            self._memory.pop(digest, None)
            self._current.discard(digest)
            self._unknown.pop(digest, None)
            if len(self._unknown) >= _MOST_UNKNOWN:
                del self._unknown[next(iter(self._unknown))]
            self._unknown[digest] = at

    def _is_known_to_nobody(self, digests: Sequence[bytes]) -> bool:
        for digest in digests:
            at = self._unknown.get(digest)
            if at is None or not self._is_fresh(at, _UNKNOWN_TTL):
                return False
        return True

    def _under_way(self, digests: Sequence[bytes]) -> asyncio.Task[Key | None] | None:
        flight = self._flights.get(digests[0])
        same = all(self._flights.get(digest) is flight for digest in digests)
        return flight if same else None

    def _land(self, digests: Sequence[bytes], done: asyncio.Task[Key | None]) -> None:
        for digest in digests:
            if self._flights.get(digest) is done:
                del self._flights[digest]
        if not done.cancelled():
            done.exception()  # seen, also where every caller has gone

    def _is_fresh(self, at: datetime, ttl: timedelta) -> bool:
        since = self._listening_since
        return since is not None and at >= since and self._is_recent(at, ttl)

    def _is_recent(self, at: datetime, ttl: timedelta) -> bool:
        # From the future is what a clock said before it was set right.
        return _NOW <= self._now() - at < ttl
