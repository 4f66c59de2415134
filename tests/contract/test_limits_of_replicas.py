"""Three replicas that share limits in Redis: any schedule, and what breaks in it.

What they answer is compared with one set of counters that is told everything at
once, by the clock of Redis; what was promised is looked at beside it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from authz import limiter
from authz.adapters import redis_batches
from authz.adapters.redis_limits import RedisLimits
from authz.core.limits import (
    LEASE_S,
    WINDOW_S,
    Budget,
    Counters,
    Demand,
    Limit,
    Limits,
    Outcome,
    Period,
)
from authz.core.model import Allow, Deny
from authz.errors import CacheUnavailable
from authz.limiter import Limiter
from authz.local.redis import embedded_redis
from authz.metrics import Metrics
from tests.fakes import FakeClock
from tests.redis_time import RedisTime
from tests.verdicts import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

KEY = "the key"
DAY = 86_400
MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)
CLOCKS_DIFFER_S = 5
# Usage is written as often.
WRITTEN_AFTER_S = 5


class Wire(Enum):
    """How it stands between a replica and Redis."""

    UP = "up"
    CUT = "cut"
    ANSWERS_LOST = "lose answers"


class WiredLimits(RedisLimits):
    """What Redis counts, as one replica reaches it."""

    wire = Wire.UP
    answered = 0

    def __init__(self, redis: Redis, script: str, told: list[tuple[int, int]]) -> None:
        super().__init__(redis, script)
        self._told = told

    async def spend(self, key_id: str, begin: int, tokens: int) -> None:
        await super().spend(key_id, begin, tokens)
        self._told.append((begin, tokens))

    async def _run(self, key_id: str, call: str, *arguments: str | int | None) -> Any:  # noqa: ANN401 - Lua's
        if self.wire is Wire.CUT:
            raise CacheUnavailable
        answer = await super()._run(key_id, call, *arguments)
        if self.wire is Wire.ANSWERS_LOST:
            raise CacheUnavailable
        self.answered += 1
        return answer


@dataclass
class Records:
    """What one replica has noted of usage, and what all of them have written."""

    written: list[tuple[float, int]]
    unwritten: list[tuple[float, int]] = field(default_factory=list)

    async def tokens_since(self, _key_id: str, begin: int) -> int:
        return self.since(begin)

    def since(self, begin: int) -> int:
        noted = [*self.written, *self.unwritten]
        return sum(tokens for began, tokens in noted if began >= begin)

    def write(self) -> None:
        self.written += self.unwritten
        self.unwritten.clear()


@dataclass
class Replica:
    """A limiter, and what is known of it alone."""

    limiter: Limiter
    store: WiredLimits
    records: Records
    clock: FakeClock
    # By its own clock, for when it is by itself.
    own: Counters = field(default_factory=Counters)
    # What it has yet to settle in Redis.
    owed: list[tuple[str, int | None]] = field(default_factory=list)

    @property
    def is_wired(self) -> bool:
        return self.store.wire is Wire.UP


@dataclass
class Running:
    """A request that was admitted and has not ended."""

    request_id: str
    began: float
    is_shared: bool
    lease: float


@dataclass
class World:
    """Three replicas, Redis, its time, and a diary of what was admitted."""

    limits: Limits
    redis: Redis
    time: RedisTime
    clock: FakeClock
    ahead_s: Sequence[float]
    shared: Counters = field(default_factory=Counters)
    written: list[tuple[float, int]] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    # Since Redis was empty: when Redis admitted, and when how much was settled.
    admitted: list[float] = field(default_factory=list)
    used: list[tuple[float, int]] = field(default_factory=list)
    asked: int = 0
    # What Redis was told in this step of what is recorded.
    told: list[tuple[int, int]] = field(default_factory=list)
    others: set[asyncio.Task[Any]] = field(default_factory=asyncio.all_tasks)
    # Whether Redis has been away or empty.
    was_broken: bool = False

    @property
    def now(self) -> float:
        return self.clock().timestamp()

    async def begin(self) -> None:
        await self.empty_redis()
        self.replicas += [self._new_replica(ahead_s) for ahead_s in self.ahead_s]

    async def rest(self) -> None:
        """Wait for what was started in the background."""
        await asyncio.sleep(0)  # what is about to start does so
        while started := asyncio.all_tasks() - self.others:
            await asyncio.wait(started, timeout=10)
        for begin, tokens in self.told:
            if begin == self.today:
                self.shared.spend(begin, tokens)
        self.told.clear()

    async def forward(self, seconds: float) -> None:
        self.clock.forward(seconds)
        await self.time.set(self.clock())
        for each in self.replicas:
            each.clock.forward(seconds)
            if seconds >= WRITTEN_AFTER_S:
                each.records.write()

    async def empty_redis(self) -> None:
        self.was_broken = bool(self.replicas)
        await self.redis.flushall()
        await self.forward(0)
        self.shared = Counters()
        self.admitted.clear()
        self.used.clear()
        for running in self.running:
            running.is_shared = False

    def kill(self, number: int) -> None:
        """End a replica at once; another one takes its place."""
        self.replicas[number] = self._new_replica(self.ahead_s[number])

    async def ask(self, replica: Replica, tokens: int) -> Outcome:
        """Let a request in, if it may pass, as `shared` or `own` must say, too."""
        request_id, allow = self._new_request(self.limits)
        verdict = await replica.limiter.admit(allow, request_id, tokens)
        outcome = verdict.limited
        assert outcome is not None
        self._compare(replica, allow, self._demand(request_id, tokens), outcome)
        if isinstance(verdict, Allow):
            self._note_admitted(replica, request_id, tokens)
        return outcome

    async def ask_and_leave(self, replica: Replica, tokens: int, steps: int) -> None:
        """Ask, and be gone before the answer comes, or not.

        Of a budget that lacks something, Redis may be told before or after that.
        """
        limits = replace(self.limits, budget=None) if self.was_broken else self.limits
        request_id, allow = self._new_request(limits)
        asking = asyncio.create_task(replica.limiter.admit(allow, request_id, tokens))
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        verdict: Allow | Deny | None = None
        with suppress(asyncio.CancelledError):
            verdict = await asking
        outcome = None if verdict is None else verdict.limited
        self._compare(replica, allow, self._demand(request_id, tokens), outcome)
        if isinstance(verdict, Allow):
            self._note_admitted(replica, request_id, tokens)
        elif verdict is None:
            await self.rest()
            self._settle(replica, request_id, 0)

    async def rush(self, tokens: int) -> None:
        """Ask many times at once; the budget is left out, it may be told meanwhile."""
        limits = replace(self.limits, budget=None)
        wired = [replica for replica in self.replicas if replica.is_wired]
        asking = [(each, *self._new_request(limits)) for each in wired * 3]
        verdicts = await asyncio.gather(
            *(each.limiter.admit(allow, name, tokens) for each, name, allow in asking)
        )
        pairs = [*zip(asking, verdicts, strict=True)]
        # They are all alike, so those that got in may have been the first.
        pairs.sort(key=lambda pair: isinstance(pair[1], Deny))
        for (replica, request_id, _), verdict in pairs:
            outcome = self.shared.reserve(
                limits, self._demand(request_id, tokens), self.now
            )
            assert verdict.limited is not None
            assert verdict.limited.refused is outcome.refused
            if isinstance(verdict, Allow):
                self._count_alone(replica, limits, self._demand(request_id, tokens))
                self._note_admitted(replica, request_id, tokens)

    async def end(self, replica: Replica, running: Running, tokens: int | None) -> None:
        """Have a replica hear of a request's end; without tokens, none came."""
        self.running.remove(running)
        replica.records.unwritten.append((running.began, tokens or 0))
        await replica.limiter.settle(KEY, running.request_id, tokens)
        self._settle(replica, running.request_id, tokens)

    async def renew(self, replica: Replica, running: Running) -> None:
        await replica.limiter.renew(KEY, running.request_id)
        replica.own.renew(running.request_id, replica.clock().timestamp())
        if replica.store.wire is not Wire.CUT and self.shared.renew(
            running.request_id, self.now
        ):
            running.lease = self.now + LEASE_S

    async def mend(self, replica: Replica) -> None:
        """Let a replica reach Redis again, and settle there what it could not."""
        replica.store.wire = Wire.UP
        answered = replica.store.answered + len(replica.owed)
        settling = asyncio.create_task(replica.limiter.keep_settling())
        async with asyncio.timeout(10):
            while replica.store.answered < answered:
                await asyncio.wait({settling}, timeout=0)
        settling.cancel()
        for request_id, tokens in replica.owed:
            self._settle_shared(request_id, tokens)
        replica.owed.clear()

    @property
    def today(self) -> int:
        return int(self.now) // DAY * DAY

    def _new_replica(self, ahead_s: float) -> Replica:
        clock = FakeClock(self.clock() + timedelta(seconds=ahead_s))
        store = WiredLimits(self.redis, self.time.script, self.told)
        records = Records(self.written)
        metrics = Metrics(CollectorRegistry())
        return Replica(Limiter(store, records, clock, metrics), store, records, clock)

    def _new_request(self, limits: Limits) -> tuple[str, Allow]:
        self.asked += 1
        key = replace(ROOT, id=KEY, limits=limits)
        return f"r{self.asked}", Allow(key, "/api/chat", "m")

    def _demand(self, request_id: str, tokens: int) -> Demand:
        today = self.today
        period = Period(today - DAY, today, today + DAY, today + 2 * DAY)
        return Demand(request_id, tokens, period)

    def _compare(
        self, replica: Replica, allow: Allow, demand: Demand, outcome: Outcome | None
    ) -> None:
        """Ask the counters, too; without an outcome, nobody waited for it."""
        expected = None
        if replica.store.wire is not Wire.CUT:
            expected = self._ask_shared(replica, allow.key.limits, demand)
        if not replica.is_wired:
            expected = self._ask_own(replica, allow.key.limits, demand)
            if outcome is not None and outcome.refused:
                replica.owed.append((demand.request_id, 0))
        elif expected is not None and expected.refused is None:
            self._count_alone(replica, allow.key.limits, demand)
        if outcome is not None and expected is not None:
            assert outcome == expected

    def _count_alone(self, replica: Replica, limits: Limits, demand: Demand) -> None:
        """Have a replica remember what passed, for when it is by itself."""
        replica.own.count(limits, demand, replica.clock().timestamp())

    def _ask_shared(
        self, replica: Replica, limits: Limits, demand: Demand
    ) -> Outcome | None:
        if limits.budget and not self.shared.enter(demand.period):
            if not replica.is_wired:
                return None
            self.shared.spend(self.today, replica.records.since(self.today))
        return self.shared.reserve(limits, demand, self.now)

    def _ask_own(
        self, replica: Replica, limits: Limits, demand: Demand
    ) -> Outcome | None:
        """What is recorded of a budget it is told at times that we do not see."""
        if self.limits.budget:
            return None
        return replica.own.reserve(limits, demand, replica.clock().timestamp())

    def _note_admitted(self, replica: Replica, request_id: str, tokens: int) -> None:
        running = Running(
            request_id, self.now, replica.is_wired, lease=self.now + LEASE_S
        )
        if running.is_shared:
            self._was_promised(tokens)
            self.admitted.append(self.now)
        self.running.append(running)

    def _was_promised(self, tokens: int) -> None:
        """Look at an admission by what everybody can see."""
        limits, since = self.limits, self.now - WINDOW_S
        if limits.rpm:
            assert sum(at > since for at in self.admitted) < limits.rpm
        if limits.concurrency:
            slots = [r for r in self.running if r.is_shared and r.lease > self.now]
            assert len(slots) < limits.concurrency
        if limits.tpm and tokens:
            assert sum(n for at, n in self.used if at > since) < limits.tpm

    def _settle(self, replica: Replica, request_id: str, tokens: int | None) -> None:
        replica.own.settle(request_id, tokens, replica.clock().timestamp())
        if not replica.is_wired:
            replica.owed.append((request_id, tokens))
        if replica.store.wire is not Wire.CUT:
            self._settle_shared(request_id, tokens)

    def _settle_shared(self, request_id: str, tokens: int | None) -> None:
        if self.shared.settle(request_id, tokens, self.now):
            self.used.append((self.now, tokens or 0))


@pytest.fixture(scope="module")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Redis]:
    """A Redis that these tests may empty."""
    async with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        assert url is not None
        async with Redis.from_url(url) as client:
            yield client


# How often each comes, beside the others.
REQUESTS = {"ask": 8, "ask and leave": 3, "rush": 1, "wait": 4}
ENDS = {"end": 5, "leave before the first byte": 2, "entry lost": 1, "renew": 2}
FAULTS = {"kill replica": 1, "empty redis": 1, "cut": 1, "lose answers": 1, "mend": 2}
NAMES = [
    name for name, weight in (REQUESTS | ENDS | FAULTS).items() for _ in range(weight)
]
# With the number of a replica and an amount.
STEP = st.tuples(st.sampled_from(NAMES), st.integers(0, 2), st.integers(0, 120))
LIMITS = st.builds(
    Limits,
    rpm=st.none() | st.integers(1, 8),
    tpm=st.none() | st.integers(1, 200),
    concurrency=st.none() | st.integers(1, 4),
    budget=st.none() | st.builds(Budget, st.integers(1, 500), st.just("day")),
)
AHEAD = st.lists(
    st.integers(-CLOCKS_DIFFER_S * 1000, CLOCKS_DIFFER_S * 1000).map(
        lambda n: n / 1000
    ),
    min_size=3,
    max_size=3,
)


async def take(world: World, what: str, number: int, amount: int) -> None:
    """Take one step of a schedule."""
    replica = world.replicas[number]
    match what:
        case "ask":
            await world.ask(replica, amount % 61)
        case "ask and leave":
            await world.ask_and_leave(replica, amount % 61, 1 + amount % 7)
        case "rush":
            await world.rush(amount % 61)
        case "wait":
            await world.forward(amount * amount / 200)
        case _ if what in FAULTS:
            await fail(world, number, what)
        case _ if world.running:
            running = world.running[amount % len(world.running)]
            await hear(world, replica, running, what, amount)


async def fail(world: World, number: int, what: str) -> None:
    replica = world.replicas[number]
    match what:
        case "kill replica":
            world.kill(number)
        case "empty redis":
            await world.empty_redis()
        case "mend":
            await world.mend(replica)
        case _:
            replica.store.wire = Wire(what)
            world.was_broken = True


async def hear(
    world: World, replica: Replica, running: Running, what: str, amount: int
) -> None:
    """Have a replica hear of a request, or nobody."""
    match what:
        case "end":
            await world.end(replica, running, amount)
        case "leave before the first byte":
            await world.end(replica, running, None)
        case "entry lost":
            world.running.remove(running)
        case "renew":
            await world.renew(replica, running)


@pytest.fixture(autouse=True)
def no_time_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for nothing here, and for Redis as long as a busy machine takes."""
    monkeypatch.setattr(limiter, "_SLOT_WAIT_S", 0)
    monkeypatch.setattr(limiter, "_RETRY_S", 0)
    monkeypatch.setattr(redis_batches, "TIMEOUT_S", 10)


@settings(
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    limits=LIMITS,
    ahead_s=AHEAD,
    early_s=st.integers(1, 120),
    steps=st.lists(STEP, min_size=10, max_size=40),
)
async def test_no_schedule_gets_more_than_the_limits_and_every_slot_comes_back(
    redis: Redis,
    limits: Limits,
    ahead_s: list[float],
    early_s: int,
    steps: list[tuple[str, int, int]],
) -> None:
    clock = FakeClock(MIDNIGHT - timedelta(seconds=early_s))
    world = World(limits, redis, RedisTime(redis), clock, ahead_s)
    await world.begin()
    for step in steps:
        await take(world, *step)
        await world.rest()
    for replica in world.replicas:
        await world.mend(replica)
    await who_is_heard_of_keeps_a_slot(world)
    await every_slot_is_free_after_a_lease(world)
    await what_is_recorded_counts_within_a_minute(world)


async def who_is_heard_of_keeps_a_slot(world: World) -> None:
    """Half of them are; `ask` knows how many slots there must be."""
    world.limits = Limits(concurrency=world.limits.concurrency)
    await world.forward(LEASE_S / 2)
    for running in world.running[::2]:
        await world.renew(world.replicas[0], running)
    await world.forward(LEASE_S - 1)
    for replica in world.replicas * 2:
        await world.ask(replica, 0)


async def every_slot_is_free_after_a_lease(world: World) -> None:
    world.running.clear()  # nobody tells that they have ended
    await world.forward(LEASE_S)
    world.limits = Limits(concurrency=3)
    first, *others = [await world.ask(each, 0) for each in world.replicas * 2]
    refused = [outcome.refused for outcome in (first, *others)]
    assert refused == [None] * 3 + [Limit.CONCURRENCY] * 3


async def what_is_recorded_counts_within_a_minute(world: World) -> None:
    """Whatever Redis has missed, and whoever has emptied it."""
    recorded = Records(world.written).since(world.today)
    world.limits = Limits(budget=Budget(max(1, recorded), "day"))
    await world.forward(WINDOW_S)
    for replica in world.replicas:
        await world.ask(replica, 1)
        await world.rest()
    if recorded:
        outcome = await world.ask(world.replicas[0], 1)
        assert outcome.refused is Limit.BUDGET
