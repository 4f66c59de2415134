"""Limits: a request reserves when it is checked, and settles when it has ended.

Replicas count together in Redis. While it does not answer, and where there is none,
each counts by itself, by the same rules.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from authz.core.limits import Demand, Limit, Limits, Period, Recorded
from authz.core.model import Deny, Reason
from authz.errors import BackendError, CacheUnavailable, StoreUnavailable
from authz.memory_limits import MemoryLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import date

    from authz.core.limits import Budget, Outcome
    from authz.core.model import Allow
    from authz.metrics import Metrics
    from authz.ports import LimitStore, UsageRecords

    _Turn = asyncio.Future[None]

_MOST_TOLD = 100_000
_MOST_HELD = 100_000
_MOST_UNSETTLED = 10_000
_RETRY_S = 1.0
# A client that has its answer asks again before Envoy has told us that it ended:
# at once where slots may be waited for, else within a tenth of a second.
_SLOT_WAIT_S = 0.2
_MOST_LINES = _LONGEST_LINE = 100
# Redis may have forgotten, or missed what was counted without it.
_TELL_AGAIN = timedelta(seconds=60)

_REASONS = {
    Limit.REQUESTS: Reason.LIMIT_REQUESTS,
    Limit.TOKENS: Reason.LIMIT_TOKENS,
    Limit.CONCURRENCY: Reason.LIMIT_CONCURRENCY,
    Limit.BUDGET: Reason.LIMIT_BUDGET,
}


class Limiter:
    """Keeps keys within their limits. One a process, used from one event loop."""

    def __init__(
        self,
        shared: LimitStore | None,
        records: UsageRecords,
        now: Callable[[], datetime],
        metrics: Metrics,
        *,
        alone: bool = True,
    ) -> None:
        """Without anything shared, a process must be ``alone`` to count right."""
        self._shared = shared
        self._alone = alone
        self._own = MemoryLimits(now)
        self._records = records
        self._now = now
        self._metrics = metrics
        metrics.limits_shared.set(shared is not None)
        # Which key a request holds something of, until it is settled here.
        self._held: dict[str, str] = {}
        # For which requests Redis did not answer; it may have reserved all the same.
        self._in_doubt: set[str] = set()
        # Who waits for a slot of which key, in the order in which they came.
        self._lines: dict[str, deque[_Turn]] = {}
        # When it was last told, of a key, what is recorded: here and to Redis.
        self._told: dict[tuple[LimitStore, str], datetime] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._unsettled: deque[tuple[str, str, int | None]] = deque(
            maxlen=_MOST_UNSETTLED
        )

    async def admit(self, allow: Allow, request_id: str, tokens: int) -> Allow | Deny:
        """Reserve for a request that may pass but for the limits of its key.

        Raises StoreUnavailable if a budget must be known that cannot be read.
        """
        reserving = asyncio.create_task(self._admit(allow, request_id, tokens))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            # The client has gone; what it may yet get is given back.
            reserving.add_done_callback(partial(self._give_back, request_id))
            raise

    async def settle(
        self, key_id: str | None, request_id: str, tokens: int | None
    ) -> None:
        """End a request that used so many tokens; None keeps what it holds.

        Without the key, what this process has not reserved stays until its lease ends.
        """
        held_by = self._held.pop(request_id, None)
        key_id = key_id or held_by
        if key_id is None:
            return
        await self._own.settle(key_id, request_id, tokens)
        await self._settle_shared(key_id, request_id, tokens)
        self._call_next(key_id)

    async def renew(self, key_id: str, request_id: str) -> None:
        """Keep what a request holds that still runs."""
        await self._own.renew(key_id, request_id)
        if self._shared is None:
            return
        try:
            await self._shared.renew(key_id, request_id)
        except CacheUnavailable:
            self._metrics.limits_unshared.inc()

    async def keep_settling(self) -> None:
        """Settle in Redis what could not be, until cancelled."""
        while True:
            await asyncio.sleep(_RETRY_S)
            for _ in range(len(self._unsettled)):
                await self._settle_shared(*self._unsettled.popleft())

    async def _admit(self, allow: Allow, request_id: str, tokens: int) -> Allow | Deny:
        key = allow.key
        demand = Demand(request_id, tokens, _period(key.limits.budget, self._now()))
        try:
            outcome = await self._reserve(key.id, key.limits, demand)
            if outcome.refused is Limit.CONCURRENCY and self._may_wait(key.id):
                outcome = await self._reserve_when_freed(key.id, key.limits, demand)
            if outcome.refused is not None:
                return Deny(_REASONS[outcome.refused], limited=outcome)
            self._hold(request_id, key.id)
            return allow._replace(limited=outcome)
        finally:
            self._end_doubt(request_id, key.id)

    def _hold(self, request_id: str, key_id: str) -> None:
        if len(self._held) >= _MOST_HELD:
            del self._held[next(iter(self._held))]
        self._held[request_id] = key_id

    def _end_doubt(self, request_id: str, key_id: str) -> None:
        """Give back what Redis may hold of a request that does not pass."""
        if request_id in self._in_doubt:
            self._in_doubt.discard(request_id)
            if request_id not in self._held:
                self._settle_later(key_id, request_id, 0)

    async def _reserve(self, key_id: str, limits: Limits, demand: Demand) -> Outcome:
        if self._shared is not None:
            try:
                outcome = await self._reserve_in(self._shared, key_id, limits, demand)
            except CacheUnavailable:
                self._in_doubt.add(demand.request_id)
                self._metrics.limits_unshared.inc()
                self._metrics.limits_shared.set(0)
            else:
                self._metrics.limits_shared.set(1)
                if outcome.refused is None:
                    # So that Redis may stay away without the key beginning anew.
                    own = limits if self._alone else Limits(rpm=limits.rpm)
                    self._own.count(key_id, own, demand)
                return outcome
        elif not self._alone:
            msg = "limits with several workers need AUTHZ_REDIS_URL"
            raise StoreUnavailable(msg)
        if not self._alone:
            # Envoy tells one worker of the ends of all: slots would not come back.
            limits = replace(limits, concurrency=None)
        return await self._reserve_in(self._own, key_id, limits, demand)

    async def _reserve_in(
        self, store: LimitStore, key_id: str, limits: Limits, demand: Demand
    ) -> Outcome:
        outcome = await store.reserve(key_id, limits, demand, None)
        if isinstance(outcome, int):
            tokens = await self._records.tokens_since(key_id, outcome)
            recorded = Recorded(outcome, tokens)
            outcome = await store.reserve(key_id, limits, demand, recorded)
        elif limits.budget:
            self._tell_again(store, key_id, demand.period.begin)
        if isinstance(outcome, int):
            msg = "what was spent of a budget is not known"
            raise StoreUnavailable(msg)
        return outcome

    def _tell_again(self, store: LimitStore, key_id: str, begin: int) -> None:
        """Correct a count that may lack something by what is recorded."""
        now = self._now()
        told = self._told.get((store, key_id))
        if told is not None and now - told < _TELL_AGAIN:
            return
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told[store, key_id] = now
        self._start(self._tell(store, key_id, begin))

    async def _tell(self, store: LimitStore, key_id: str, begin: int) -> None:
        with suppress(BackendError):  # there is a next time
            recorded = await self._records.tokens_since(key_id, begin)
            await store.spend(key_id, begin, recorded)

    def _may_wait(self, key_id: str) -> bool:
        line = self._lines.get(key_id)
        if line is None:
            return len(self._lines) < _MOST_LINES
        return len(line) < _LONGEST_LINE

    async def _reserve_when_freed(
        self, key_id: str, limits: Limits, demand: Demand
    ) -> Outcome:
        """Reserve when other requests of the key have ended, if they do soon."""
        until = asyncio.get_running_loop().time() + _SLOT_WAIT_S
        # In line before it asks: what ends while it asks must not be missed.
        turn = self._stand_in_line(key_id)
        try:
            with self._metrics.waiting_for_slot.track_inprogress():
                while True:
                    outcome = await self._reserve(key_id, limits, demand)
                    if outcome.refused is not Limit.CONCURRENCY:
                        return outcome
                    if not await _is_called(turn, until):
                        break
                    turn = self._stand_in_line(key_id, ahead=True)
        finally:
            self._leave_line(key_id, turn)
        # What another process was told of calls nobody here.
        return await self._reserve(key_id, limits, demand)

    def _stand_in_line(self, key_id: str, *, ahead: bool = False) -> _Turn:
        line = self._lines.setdefault(key_id, deque())
        turn = asyncio.get_running_loop().create_future()
        if ahead:
            line.appendleft(turn)
        else:
            line.append(turn)
        return turn

    def _leave_line(self, key_id: str, turn: _Turn) -> None:
        line = self._lines.get(key_id, deque())
        if turn in line:
            line.remove(turn)
        elif not turn.cancelled():
            self._call_next(key_id)  # it was called and needs no call
        if not line:
            self._lines.pop(key_id, None)

    def _call_next(self, key_id: str) -> None:
        line = self._lines.get(key_id)
        while line:
            turn = line.popleft()
            if not turn.done():  # its time is not over
                turn.set_result(None)
                return

    async def _settle_shared(
        self, key_id: str, request_id: str, tokens: int | None
    ) -> None:
        if self._shared is None:
            return
        try:
            await self._shared.settle(key_id, request_id, tokens)
        except CacheUnavailable:
            self._settle_later(key_id, request_id, tokens)

    def _settle_later(self, key_id: str, request_id: str, tokens: int | None) -> None:
        if len(self._unsettled) == _MOST_UNSETTLED:
            self._metrics.settlements_dropped.inc()
        self._unsettled.append((key_id, request_id, tokens))

    def _give_back(
        self, request_id: str, reserving: asyncio.Task[Allow | Deny]
    ) -> None:
        if reserving.cancelled() or reserving.exception() is not None:
            return
        if isinstance(reserving.result(), Deny):
            return
        self._start(self.settle(None, request_id, 0))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _is_called(turn: _Turn, until: float) -> bool:
    try:
        async with asyncio.timeout_at(until):
            await turn
    except TimeoutError:
        return False
    return True


def _period(budget: Budget | None, now: datetime) -> Period:
    """Return the period of a budget that a moment lies in, in UTC."""
    if budget is None:
        return Period(0, 0, 0, 0)
    return _period_of(budget.period, now.astimezone(UTC).date())


@lru_cache(maxsize=8)
def _period_of(kind: str, day: date) -> Period:
    today = datetime(day.year, day.month, day.day, tzinfo=UTC)
    if kind == "day":
        begins = [today + timedelta(days=days) for days in (-1, 0, 1, 2)]
    else:
        first = today.replace(day=1)
        following = _next_month(first)
        previous = (first - timedelta(days=1)).replace(day=1)
        begins = [previous, first, following, _next_month(following)]
    return Period(*(int(moment.timestamp()) for moment in begins))


def _next_month(first: datetime) -> datetime:
    return (first + timedelta(days=31)).replace(day=1)
