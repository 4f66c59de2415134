"""How much a key may use: requests and tokens a minute, requests at once, a budget.

Two windows, both of the 60 seconds that are just over, in steps of one second: what
was admitted counts for 60 to 61 seconds, so no 60 seconds admit more than the limit.
Tokens are known when an answer ends: until then a request holds an estimate, no more
than is left, and a request is admitted while anything is left. What runs may thus go
beyond a limit by what it uses beyond its estimate, nothing else may.

The same rules stand in adapters/limits.lua, for replicas that share Redis.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW_S = 60
# A slot comes back after this if nobody says that its request still runs.
LEASE_S = 60
# What was estimated can be set right for as long after it was last heard of.
KEPT_S = 3600

PERIODS = ("day", "month")

# English has about four bytes a token, and JSON some signs of its own.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 1000
# For requests that set no bound on their answer.
_USUAL_ANSWER = 1024

_LIMIT = re.compile(r"(rpm|tpm|concurrency)=([1-9][0-9]{0,11})")
_BUDGET = re.compile(r"budget=([1-9][0-9]{0,11})/(day|month)")


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens for each day or month, in UTC."""

    tokens: int
    period: str

    def __str__(self) -> str:
        return f"{self.tokens}/{self.period}"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a key; None is none."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budget: Budget | None = None

    def __bool__(self) -> bool:
        return self is not NONE and self != NONE

    def changed(self, changes: Mapping[str, int | Budget | None]) -> Limits:
        """Return these with others in place of some, by name."""
        return replace(self, **changes)  # type: ignore[arg-type] # what each takes

    def __str__(self) -> str:
        named = ((name, getattr(self, name)) for name in self.__slots__)
        return ",".join(f"{name}={value}" for name, value in named if value is not None)


NONE = Limits()


@lru_cache(maxsize=4096)
def parse_limits(text: str) -> Limits:
    """Read what ``str`` of limits gives. Raises ValueError."""
    given: dict[str, int | Budget] = {}
    for part in filter(None, text.split(",")):
        if limit := _LIMIT.fullmatch(part):
            given[limit[1]] = int(limit[2])
        elif budget := _BUDGET.fullmatch(part):
            given["budget"] = Budget(int(budget[1]), budget[2])
        else:
            msg = "a limit is rpm, tpm or concurrency=N, or budget=N/day or N/month"
            raise ValueError(msg)
    if not given:
        return NONE
    return Limits(**given)  # type: ignore[arg-type] # by the expressions above


def estimate(amounts: Mapping[str, float]) -> int:
    """Return how many tokens a request may use, by what it asks for."""
    asked = ceil(amounts.get("text_bytes", 0) / _BYTES_PER_TOKEN)
    asked += int(amounts.get("images", 0)) * _TOKENS_PER_IMAGE
    longest = amounts.get("num_predict")
    if longest is None:  # nothing is generated
        return asked
    # What 0 and less mean differs between versions of Ollama.
    return asked + (int(longest) if longest > 0 else _USUAL_ANSWER)


class Limit(Enum):
    """What a request can be refused for."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class Period:
    """The period of a budget, in seconds since 1970, and those beside it.

    Replicas that share counters go by one clock, which may be in one of those.
    """

    previous: int
    begin: int
    end: int
    next_end: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many tokens were recorded since the beginning of a budget's period."""

    since: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs of the limits; with no tokens, no tokens need be left."""

    request_id: str
    tokens: int
    period: Period


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a limit, and in how many seconds all of it will be."""

    limit: int
    left: int
    reset_s: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: admitted, or beyond a limit."""

    refused: Limit | None = None
    retry_after_s: int = 0
    requests: Quota | None = None
    tokens: Quota | None = None
    # How many slots of the key are free after this; None if it has no such limit.
    slots_left: int | None = None


class Window:
    """What was used in the last 60 seconds, by the second. ``now`` is in seconds."""

    def __init__(self) -> None:
        self._used: dict[int, int] = {}
        self._total = 0
        self._at = 0

    def add(self, amount: int, now: float) -> None:
        """Count from now on."""
        self._advance(now)
        self._used[self._at] = self._used.get(self._at, 0) + amount
        self._total += amount

    def take_back(self, amount: int, second: int) -> None:
        """Count less from a second on that may be over."""
        if second in self._used:
            self._used[second] -= amount
            self._total -= amount

    def total(self, now: float) -> int:
        """Return what counts now."""
        self._advance(now)
        return self._total

    def free_at(self, limit: int, now: float) -> int:
        """Return the second in which less than the limit will count."""
        used, second = self.total(now), int(now)
        for second in sorted(self._used):
            used -= self._used[second]
            if used < limit:
                break
        return second + WINDOW_S + 1

    def quota(self, limit: int, now: float) -> Quota:
        """Return what is left of the limit."""
        left = max(0, limit - self.total(now))
        newest = max((second for second, n in self._used.items() if n), default=None)
        reset = 0 if newest is None else ceil(newest + WINDOW_S + 1 - now)
        return Quota(limit, left, reset)

    def _advance(self, now: float) -> None:
        if int(now) != self._at:
            self._at = int(now)
            for second in [s for s in self._used if s < self._at - WINDOW_S]:
                self._total -= self._used.pop(second)


@dataclass(slots=True)
class Reservation:
    """What a request holds until it is settled; None where there is no limit."""

    second: int
    until: float
    slot: bool = False
    tokens: int | None = None
    of_budget: int = 0
    period: int | None = None


class Counters:
    """What one key has used. ``now`` is in seconds since 1970 in UTC."""

    def __init__(self) -> None:
        self._requests = Window()
        self._tokens = Window()
        self._spent: dict[int, int] = {}  # by the beginning of the budget's period
        # Both in the order in which they end.
        self._running: dict[str, float] = {}
        self._reserved: dict[str, Reservation] = {}

    def enter(self, period: Period) -> bool:
        """Enter a budget's period; False if it must be told what was spent in it.

        What follows on a period that is known begins with nothing spent.
        """
        if period.begin not in self._spent and period.previous in self._spent:
            self._spent = {period.begin: 0}
        return period.begin in self._spent

    def spend(self, period: int, tokens: int) -> None:
        """Take in what was recorded of a budget; more may have been used since."""
        self._spent = {period: max(tokens, self._spent.get(period, 0))}

    def reserve(self, limits: Limits, demand: Demand, now: float) -> Outcome:
        """Admit or refuse a request; its period must be one that was entered."""
        self._end_leases(now)
        refused, free_at = self._first_beyond(limits, demand, now)
        if refused is None:
            self._hold(limits, limits.budget, demand, now)
        return Outcome(
            refused,
            ceil(free_at - now),
            self._requests.quota(limits.rpm, now) if limits.rpm else None,
            self._tokens.quota(limits.tpm, now) if limits.tpm else None,
            self._slots_left(limits.concurrency) if limits.concurrency else None,
        )

    def count(self, limits: Limits, demand: Demand, now: float) -> None:
        """Take in a request that passed elsewhere; of its budget the records tell."""
        self._end_leases(now)
        if limits.tpm or limits.concurrency:
            self._hold(limits, None, demand, now)
        elif limits.rpm:
            self._requests.add(1, now)

    def settle(self, request_id: str, tokens: int | None, now: float) -> bool:
        """End a request that used so many tokens; None keeps what it holds.

        False if it is not known, or was settled before.
        """
        self._running.pop(request_id, None)
        held = self._reserved.pop(request_id, None)
        if held is None:
            return False
        if tokens is not None and held.tokens is not None:
            self._tokens.take_back(held.tokens, held.second)
            self._tokens.add(tokens, now)
        if tokens is not None and held.period in self._spent:
            self._spent[held.period] += tokens - held.of_budget
        return True

    def renew(self, request_id: str, now: float) -> bool:
        """Keep what a request holds that still runs; False if it is not known."""
        held = self._reserved.pop(request_id, None)
        if held is None:
            return False
        held.until = now + KEPT_S
        self._reserved[request_id] = held
        if held.slot:
            self._running.pop(request_id, None)
            self._running[request_id] = now + LEASE_S
        return True

    def _end_leases(self, now: float) -> None:
        while (
            self._running and self._running[first := next(iter(self._running))] <= now
        ):
            del self._running[first]
        while self._reserved:
            first = next(iter(self._reserved))
            if self._reserved[first].until > now:
                break
            del self._reserved[first]

    def _first_beyond(
        self, limits: Limits, demand: Demand, now: float
    ) -> tuple[Limit | None, float]:
        budget, tpm = (limits.budget, limits.tpm) if demand.tokens else (None, None)
        if budget and self._spent[demand.period.begin] >= budget.tokens:
            return Limit.BUDGET, demand.period.end
        if limits.rpm and self._requests.total(now) >= limits.rpm:
            return Limit.REQUESTS, self._requests.free_at(limits.rpm, now)
        if tpm and self._tokens.total(now) >= tpm:
            return Limit.TOKENS, self._tokens.free_at(tpm, now)
        if limits.concurrency and self._has_no_slot(limits.concurrency, demand):
            return Limit.CONCURRENCY, now + 1
        return None, now

    def _has_no_slot(self, concurrency: int, demand: Demand) -> bool:
        return len(self._running) >= concurrency or demand.request_id in self._running

    def _slots_left(self, concurrency: int) -> int:
        return max(0, concurrency - len(self._running))

    def _hold(
        self, limits: Limits, budget: Budget | None, demand: Demand, now: float
    ) -> None:
        held = Reservation(int(now), now + KEPT_S)
        if limits.rpm:
            self._requests.add(1, now)
        if limits.tpm:
            left = limits.tpm - self._tokens.total(now)
            held.tokens = min(demand.tokens, max(0, left))
            self._tokens.add(held.tokens, now)
        if budget:
            held.period = demand.period.begin
            left = budget.tokens - self._spent[held.period]
            held.of_budget = min(demand.tokens, max(0, left))
            self._spent[held.period] += held.of_budget
        if limits.concurrency:
            held.slot = True
            self._running[demand.request_id] = now + LEASE_S
        self._reserved.pop(demand.request_id, None)
        self._reserved[demand.request_id] = held
