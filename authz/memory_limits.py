"""Limits of the keys that one process counts by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authz.core.limits import Counters

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from authz.core.limits import Demand, Limits, Outcome, Recorded

_MOST_KEYS = 100_000


class MemoryLimits:
    """The LimitStore of one process."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._counters: dict[str, Counters] = {}

    async def reserve(
        self, key_id: str, limits: Limits, demand: Demand, recorded: Recorded | None
    ) -> Outcome | int:
        """Admit or refuse; or return since when what is recorded must be told."""
        counters = self._counters_of(key_id)
        begin = demand.period.begin
        if limits.budget and recorded is not None:
            counters.spend(recorded.since, recorded.tokens)
        if limits.budget and not counters.enter(demand.period):
            return begin
        return counters.reserve(limits, demand, self._seconds())

    def count(self, key_id: str, limits: Limits, demand: Demand) -> None:
        """Take in a request that passed by the counters that replicas share."""
        self._counters_of(key_id).count(limits, demand, self._seconds())

    async def settle(self, key_id: str, request_id: str, tokens: int | None) -> bool:
        """End a request that used so many tokens; None keeps what it holds."""
        counters = self._counters.get(key_id)
        return bool(counters and counters.settle(request_id, tokens, self._seconds()))

    async def renew(self, key_id: str, request_id: str) -> bool:
        """Keep what a request holds that still runs."""
        counters = self._counters.get(key_id)
        return bool(counters and counters.renew(request_id, self._seconds()))

    async def spend(self, key_id: str, begin: int, tokens: int) -> None:
        """Take in what is recorded of a budget; more may have been used since."""
        self._counters_of(key_id).spend(begin, tokens)

    def _counters_of(self, key_id: str) -> Counters:
        counters = self._counters.pop(key_id, None) or Counters()
        if len(self._counters) >= _MOST_KEYS:
            del self._counters[next(iter(self._counters))]
        self._counters[key_id] = counters  # the latest stands last
        return counters

    def _seconds(self) -> float:
        return self._now().timestamp()
