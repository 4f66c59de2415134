"""What the replicas share in Redis, and how far it is believed.

Redis may fail, be slow, or hold what was true before: no failure of it is one of
ours, and no record older than a change that we heard of is believed.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from authz.errors import CacheUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from authz.metrics import Metrics
    from authz.ports import KeyCache, Verified

_RETRY_S = 1.0
_AT_ONCE = 500
_MOST_PUTTING = 100
# Above any; versions are bigint.
_NO_VERSION = 2.0**64


class Shared:
    """The KeyCache as one replica uses it; without one, nothing is shared."""

    def __init__(self, cache: KeyCache | None, size: int, metrics: Metrics) -> None:
        self._cache = cache
        self._size = size
        self._metrics = metrics
        # Versions from which on a record is believed; infinity until PostgreSQL
        # has been asked. Versions come from rows alone, and never go back.
        self._least: dict[bytes, float] = {}
        self._not_before: datetime | None = None
        self._putting: set[asyncio.Task[None]] = set()
        self._to_drop: dict[bytes, None] = {}
        self._dropping: asyncio.Task[None] | None = None

    async def get(self, digests: Sequence[bytes]) -> Verified | None:
        """Return what some replica verified, if it is to be believed."""
        if self._cache is None or self._are_all_changed(digests):
            return None
        try:
            found = await self._cache.get(digests)
        except CacheUnavailable:
            self._metrics.lookups.labels("redis_error").inc()
            return None
        # It may have changed while we waited, so this is asked last.
        return found if found is not None and self._is_believed(found) else None

    def put(self, verified: Verified) -> None:
        """Share what PostgreSQL said of a key, in the background."""
        digest = verified.key.digest
        if digest in self._least:
            self._least[digest] = verified.key.version
        if self._cache is not None and len(self._putting) < _MOST_PUTTING:
            putting = asyncio.create_task(self._put(self._cache, verified))
            self._putting.add(putting)
            putting.add_done_callback(self._putting.discard)

    def changed(self, digest: bytes) -> bool:
        """Believe no record of a key until `put`; False if there is no more room.

        The old record is dropped in the background, for replicas that start while
        PostgreSQL is away. Nobody else relies on that: the drop may fail, and who
        has read the old row before may put it back after.
        """
        if len(self._least) >= self._size and digest not in self._least:
            return False
        self._least[digest] = math.inf
        if self._cache is not None and len(self._to_drop) < self._size:
            self._to_drop[digest] = None
            if self._dropping is None:
                self._dropping = asyncio.create_task(self._drop_all(self._cache))
        return True

    def is_expected(self, digests: Sequence[bytes]) -> bool:
        """Tell whether one of them is said to have changed, and was not asked for."""
        return any(self._least.get(digest) == math.inf for digest in digests)

    def absent(self, digests: Sequence[bytes]) -> None:
        """Expect none of them any more: PostgreSQL has none, whoever said so."""
        for digest in digests:
            if digest in self._least:
                self._least[digest] = _NO_VERSION

    def forget_changes(self, now: datetime) -> None:
        """Make room: believe nothing that was verified up to now."""
        self._least.clear()
        self._not_before = now

    async def aclose(self) -> None:
        """End what is under way in the background, before Redis is closed."""
        tasks = {*self._putting, *([self._dropping] if self._dropping else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _are_all_changed(self, digests: Sequence[bytes]) -> bool:
        """Tell whether no record of them would be believed."""
        return all(self._least.get(digest) == math.inf for digest in digests)

    def _is_believed(self, found: Verified) -> bool:
        if self._not_before is not None and found.at < self._not_before:
            return False
        return found.key.version >= self._least.get(found.key.digest, 0)

    async def _put(self, cache: KeyCache, verified: Verified) -> None:
        try:
            await cache.put(verified)
        except CacheUnavailable:
            self._metrics.lookups.labels("redis_error").inc()

    async def _drop_all(self, cache: KeyCache) -> None:
        while self._to_drop:
            some = list(self._to_drop)[:_AT_ONCE]
            for digest in some:
                del self._to_drop[digest]
            try:
                await cache.drop(some)
            except CacheUnavailable:
                self._metrics.lookups.labels("redis_error").inc()
                self._to_drop.update(dict.fromkeys(some))
                await asyncio.sleep(_RETRY_S)
        self._dropping = None
