"""Keys that this replica has never seen: good ones, or guesses; PostgreSQL knows.

Guessing must cost bounded work, and must not be paid for with a 401 for a good key.
So the rule is:

- What PostgreSQL does not have is charged to the source that asked for it. A source
  that is charged more than its rate is undecided (503) until time has paid, for good
  keys and guesses alike: which of the two it sends cannot be told without asking.
- A network behind one line may have all of an IPv6 /48, which is 65,536 sources of a
  /64 each: so a /48 is charged, too, and has the rate of four sources.
- A key that is found is charged to nobody. So a source of good keys alone has no
  bound, as where all clients come through one proxy.
- All sources together have four of the pool's connections and 1,000 places to wait
  for one; whoever waits for longer than half a second is undecided. When a source has
  had its share, those of it that wait are gone at once, so others do not notice.

In any time t, PostgreSQL sees of one source at most ``per_s * (t + 1) + 4`` look-ups
of keys that are not there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from authz.core.misses import Misses
from authz.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from authz.core.model import Key
    from authz.metrics import Metrics
    from authz.ports import KeyReader

_AT_ONCE = 4
_MOST_WAITING = 1000
_WAIT_S = 0.5
_SOURCES_A_SITE = 4


class Strangers:
    """The KeyReader as keys that nobody knows may use it."""

    def __init__(
        self,
        store: KeyReader,
        per_s: float,
        now: Callable[[], datetime],
        metrics: Metrics,
    ) -> None:
        self._store = store
        # RFC 6177: a /64 is one network, and a site has a /48 of them at the most.
        self._misses = (Misses(per_s), Misses(per_s * _SOURCES_A_SITE, ipv6_prefix=48))
        self._now = now
        self._metrics = metrics
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    async def find(self, digests: Sequence[bytes], source: str) -> Key | None:
        """Return the key, None if there is none. Raises StoreUnavailable."""
        self.refuse_excess(source)
        await self._take_place()
        try:
            self.refuse_excess(source)
            key = await self._store.find(digests)
        finally:
            self._places.release()
        if key is None:
            for misses in self._misses:
                misses.count(source, self._now().timestamp())
        return key

    async def _take_place(self) -> None:
        if self._waiting >= _MOST_WAITING:
            raise self._excess()
        self._waiting += 1
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._places.acquire()
        except TimeoutError:
            raise self._excess() from None
        finally:
            self._waiting -= 1

    def refuse_excess(self, source: str) -> None:
        """Raise StoreUnavailable for a source that has had its share."""
        now = self._now().timestamp()
        if any(misses.exceeded(source, now) for misses in self._misses):
            raise self._excess()

    def _excess(self) -> StoreUnavailable:
        self._metrics.lookups.labels("excess").inc()
        return StoreUnavailable("too many keys that nobody knows")
