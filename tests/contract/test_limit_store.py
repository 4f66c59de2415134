"""One suite for the counters of one process and those in Redis: the same rules."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from authz.adapters import redis_batches
from authz.adapters.redis_limits import RedisLimits
from authz.core.limits import (
    LEASE_S,
    WINDOW_S,
    Budget,
    Demand,
    Limit,
    Limits,
    Outcome,
    Period,
    Quota,
    Recorded,
)
from authz.memory_limits import MemoryLimits
from tests.fakes import FakeClock
from tests.redis_time import RedisTime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from authz.ports import LimitStore

DAY = 86_400


@dataclass
class Stage:
    """A store, and the clock that it goes by."""

    store: LimitStore
    clock: FakeClock
    _set: Callable[[FakeClock], Awaitable[None]]
    key_id: str = field(default_factory=lambda: str(uuid4()))

    async def forward(self, seconds: float) -> None:
        self.clock.forward(seconds)
        await self._set(self.clock)

    async def ask(
        self, limits: Limits, request_id: str, tokens: int = 0, ahead_s: float = 0
    ) -> Outcome:
        """Ask as a replica does, whose own clock may be ahead."""
        demand = self.demand(request_id, tokens, ahead_s)
        nothing = Recorded(self.demand("", 0).period.begin, 0)
        outcome = await self.store.reserve(self.key_id, limits, demand, nothing)
        assert isinstance(outcome, Outcome)
        return outcome

    def demand(self, request_id: str, tokens: int, ahead_s: float = 0) -> Demand:
        begin = int(self.clock().timestamp() + ahead_s) // DAY * DAY
        period = Period(begin - DAY, begin, begin + DAY, begin + 2 * DAY)
        return Demand(request_id, tokens, period)


async def in_memory(clock: FakeClock) -> Stage:
    async def set_clock(_clock: FakeClock) -> None: ...

    return Stage(MemoryLimits(clock), clock, set_clock)


async def in_redis(clock: FakeClock, redis: Redis) -> Stage:
    """Redis goes by its own clock, which these tests put a clock of theirs for."""
    time = RedisTime(redis)

    async def set_clock(clock: FakeClock) -> None:
        await time.set(clock())

    await set_clock(clock)
    return Stage(RedisLimits(redis, time.script), clock, set_clock)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=["memory", "redis"])
async def stage(request: pytest.FixtureRequest, redis: Redis) -> Stage:
    clock = FakeClock()
    if request.param == "memory":
        return await in_memory(clock)
    return await in_redis(clock, redis)


async def test_each_limit_refuses_by_its_name(stage: Stage) -> None:
    for limits, refusal in (
        (Limits(rpm=1), Limit.REQUESTS),
        (Limits(tpm=5), Limit.TOKENS),
        (Limits(concurrency=1), Limit.CONCURRENCY),
        (Limits(budget=Budget(5, "day")), Limit.BUDGET),
    ):
        stage.key_id = str(uuid4())
        first = await stage.ask(limits, "a", 5)
        second = await stage.ask(limits, "b", 5)
        assert (first.refused, second.refused) == (None, refusal)


async def test_the_slots_that_are_left_are_told(stage: Stage) -> None:
    two = Limits(concurrency=2)
    outcomes = [await stage.ask(two, request_id) for request_id in "aabc"]
    assert [outcome.slots_left for outcome in outcomes] == [1, 1, 0, 0]
    assert (await stage.ask(Limits(concurrency=1), "d")).slots_left == 0
    await stage.store.settle(stage.key_id, "a", None)
    assert (await stage.ask(Limits(rpm=1, concurrency=2), "d")).slots_left == 0
    await stage.forward(LEASE_S)
    refused_otherwise = await stage.ask(Limits(rpm=1, concurrency=2), "e")
    assert (refused_otherwise.refused, refused_otherwise.slots_left) == (
        Limit.REQUESTS,
        2,
    )
    assert (await stage.ask(Limits(rpm=5), "f")).slots_left is None


async def test_a_budget_that_nobody_told_is_asked_for(stage: Stage) -> None:
    limits = Limits(budget=Budget(100, "day"))
    demand = stage.demand("a", 1)
    since = demand.period.begin
    assert await stage.store.reserve(stage.key_id, limits, demand, None) == since
    recorded = Recorded(since, 100)
    told = await stage.store.reserve(stage.key_id, limits, demand, recorded)
    assert isinstance(told, Outcome)
    assert told.refused is Limit.BUDGET


async def test_what_is_recorded_raises_what_was_counted_and_never_lowers_it(
    stage: Stage,
) -> None:
    limits = Limits(budget=Budget(100, "day"))
    begin = stage.demand("", 0).period.begin
    await stage.ask(limits, "a", 50)
    await stage.store.spend(stage.key_id, begin, 10)
    lower = await stage.ask(limits, "b", 1)
    await stage.store.spend(stage.key_id, begin, 100)
    higher = await stage.ask(limits, "c", 1)
    assert (lower.refused, higher.refused) == (None, Limit.BUDGET)


async def test_a_new_day_has_a_new_budget_without_asking(stage: Stage) -> None:
    limits = Limits(budget=Budget(5, "day"))
    await stage.ask(limits, "a", 5)
    await stage.forward(DAY)
    demand = stage.demand("b", 5)
    outcome = await stage.store.reserve(stage.key_id, limits, demand, None)
    assert isinstance(outcome, Outcome)
    assert outcome.refused is None


async def test_denials_leave_nothing_behind(stage: Stage) -> None:
    """Whoever is refused must not pay, or he would never be admitted again."""
    limits = Limits(rpm=1, concurrency=9, tpm=100)
    await stage.ask(limits, "a", 1)
    for n in range(20):
        await stage.ask(limits, f"b{n}", 50)
    await stage.forward(61)
    outcome = await stage.ask(limits, "c", 1)
    assert outcome.refused is None
    assert outcome.tokens is not None
    assert outcome.tokens.left == 99


async def test_what_held_no_tokens_is_charged_with_what_it_used(stage: Stage) -> None:
    limits = Limits(tpm=100)
    await stage.ask(limits, "a", 0)
    assert await stage.store.settle(stage.key_id, "a", 7)
    outcome = await stage.ask(limits, "b", 0)
    assert outcome.tokens is not None
    assert outcome.tokens.left == 93


async def test_what_is_unknown_is_neither_settled_nor_renewed(stage: Stage) -> None:
    assert not await stage.store.settle(stage.key_id, "unknown", 5)
    assert not await stage.store.renew(stage.key_id, "unknown")
    await stage.ask(Limits(concurrency=1), "a")
    assert await stage.store.renew(stage.key_id, "a")
    assert await stage.store.settle(stage.key_id, "a", 0)
    assert not await stage.store.settle(stage.key_id, "a", 0)


async def test_seconds_that_are_over_count_no_more_however_long_nobody_asks(
    stage: Stage,
) -> None:
    limits = Limits(rpm=100, tpm=100)
    for quiet_s, counting in (
        (0, 5),
        (9, 5),
        (55, 5),
        (56, 4),
        (59, 1),
        (60, 0),
        (10**8, 0),
    ):
        stage.key_id = str(uuid4())
        for number in range(5):
            await stage.ask(limits, f"a{number}", 1)
            await stage.forward(1)
        await stage.forward(quiet_s)
        outcome = await stage.ask(limits, "b", 1)
        assert outcome.requests == Quota(100, 99 - counting, WINDOW_S + 1), quiet_s
        assert outcome.tokens == outcome.requests


async def test_what_is_over_when_it_is_settled_is_not_given_back(stage: Stage) -> None:
    limits = Limits(tpm=100)
    await stage.ask(limits, "a", 50)
    await stage.forward(WINDOW_S + 1)
    await stage.store.settle(stage.key_id, "a", 7)
    outcome = await stage.ask(limits, "b", 0)
    assert outcome.tokens == Quota(100, 93, WINDOW_S + 1)


async def test_the_second_that_is_over_first_is_waited_for_if_a_clock_went_back(
    stage: Stage,
) -> None:
    """As that of Redis may after a failover."""
    limits = Limits(rpm=2)
    await stage.ask(limits, "a")
    await stage.forward(-20)
    await stage.ask(limits, "b")
    refused = await stage.ask(limits, "c")
    assert (refused.refused, refused.retry_after_s) == (Limit.REQUESTS, WINDOW_S + 1)
    assert refused.requests == Quota(2, 0, WINDOW_S + 1 + 20)


async def test_all_of_a_limit_is_back_sooner_if_its_newest_use_is_given_back(
    stage: Stage,
) -> None:
    limits = Limits(tpm=100)
    await stage.ask(limits, "a", 10)
    await stage.forward(20)
    await stage.ask(limits, "b", 10)
    await stage.forward(5)
    await stage.store.settle(stage.key_id, "b", 0)
    outcome = await stage.ask(limits, "c", 0)
    assert outcome.tokens == Quota(100, 90, WINDOW_S + 1 - 25)


_STEP = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 70_000)),
    st.tuples(st.just("ask"), st.integers(0, 60)),
    st.tuples(st.just("settle"), st.integers(0, 120)),
    st.tuples(st.just("renew"), st.just(0)),
    st.tuples(st.just("spend"), st.integers(0, 300)),
)
_LIMITS = st.builds(
    Limits,
    rpm=st.none() | st.integers(1, 8),
    tpm=st.none() | st.integers(1, 200),
    concurrency=st.none() | st.integers(1, 4),
    budget=st.none() | st.builds(Budget, st.integers(1, 500), st.just("day")),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(limits=_LIMITS, steps=st.lists(_STEP, max_size=60))
async def test_redis_and_memory_answer_every_schedule_alike(
    redis: Redis, limits: Limits, steps: list[tuple[str, int]]
) -> None:
    await assert_alike(redis, limits, steps)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    limits=st.sampled_from([Limits(rpm=4), Limits(tpm=150), Limits(rpm=9, tpm=300)]),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.integers(1, 70_000)),
            st.tuples(st.just("wait"), st.integers(-130_000, -1)),
            st.tuples(st.just("ask"), st.integers(0, 60)),
            st.tuples(st.just("settle"), st.integers(0, 120)),
        ),
        max_size=60,
    ),
)
async def test_a_clock_that_goes_back_after_a_failover_leaves_windows_right(
    redis: Redis, limits: Limits, steps: list[tuple[str, int]]
) -> None:
    await assert_alike(redis, limits, steps)


async def assert_alike(
    redis: Redis, limits: Limits, steps: list[tuple[str, int]]
) -> None:
    """Take the same steps in both stores, with the same answer to each."""
    stages = [await in_memory(FakeClock()), await in_redis(FakeClock(), redis)]
    for number, (what, amount) in enumerate(steps):
        answers = [await _take(s, limits, what, amount, number) for s in stages]
        assert answers[0] == answers[1], (number, what, amount)


async def test_sums_stay_those_of_the_seconds_for_as_long_as_a_key_is_used(
    redis: Redis,
) -> None:
    """Memory adds them up each time; its limits change, and so who is refused."""
    chance = Random(7)  # noqa: S311 - the same steps each time
    kinds = [Limits(rpm=10**6, tpm=10**6), Limits(rpm=40), Limits(rpm=9, tpm=2000)]
    stages = [await in_memory(FakeClock()), await in_redis(FakeClock(), redis)]
    for number in range(1200):
        what = chance.choice(["wait", "ask", "ask", "settle"])
        amount = chance.choice([0, chance.randrange(100), chance.randrange(3000)])
        limits = chance.choice(kinds)
        answers = [await _take(s, limits, what, amount, number) for s in stages]
        assert answers[0] == answers[1], (number, what, amount)


async def test_a_key_that_is_used_all_the_time_is_not_read_as_a_whole(
    redis: Redis,
) -> None:
    clock, time, limits = FakeClock(), RedisTime(redis), Limits(rpm=99, tpm=99)
    whole = "redis.call('HGETALL', counters)"
    assert time.script.count(whole) == 1
    reads_no_whole = time.script.replace(whole, "error('read as a whole')")
    await time.set(clock())
    first = RedisLimits(redis, time.script)
    stage = Stage(first, clock, lambda clock: time.set(clock()))
    await stage.ask(limits, "r", 1)
    stage.store = RedisLimits(redis, reads_no_whole)
    for number in range(2 * WINDOW_S):
        await stage.forward(1)
        assert (await stage.ask(limits, f"r{number}", 1)).refused is None
        assert await stage.store.settle(stage.key_id, f"r{number}", 1)


async def test_no_more_is_kept_of_a_key_than_the_seconds_that_count(
    redis: Redis,
) -> None:
    stage, limits = await in_redis(FakeClock(), redis), Limits(rpm=10**6)
    await stage.ask(limits, "a")
    (name,) = [name async for name in redis.scan_iter(f"*{{{stage.key_id}}}")]
    for every_s in (1, 5, 10, 30, 100):
        for _ in range(WINDOW_S + 1):
            await stage.forward(every_s)
            await stage.ask(limits, "a")
        seconds_that_count = WINDOW_S // every_s + 1
        assert await redis.hlen(name) == seconds_that_count + 1  # and their sums


async def test_what_redis_has_dropped_is_not_given_back_once_more(
    redis: Redis,
) -> None:
    """As one does that may drop what it likes when it is full."""
    stage, limits = await in_redis(FakeClock(), redis), Limits(tpm=100)
    await stage.ask(limits, "a", 50)
    (name,) = [name async for name in redis.scan_iter(f"*{{{stage.key_id}}}")]
    await redis.delete(name)
    await stage.store.settle(stage.key_id, "a", 7)
    outcome = await stage.ask(limits, "b", 0)
    assert outcome.tokens is not None
    assert outcome.tokens.left == 93


async def _take(
    stage: Stage, limits: Limits, what: str, amount: int, number: int
) -> object:
    earlier = f"r{number * 7 // 11}"
    match what:
        case "wait":
            await stage.forward(amount / 1000)
        case "ask":
            return await stage.ask(limits, f"r{number}", amount)
        case "settle":
            tokens = amount or None
            return await stage.store.settle(stage.key_id, earlier, tokens)
        case "renew":
            return await stage.store.renew(stage.key_id, earlier)
        case "spend" if limits.budget is not None:
            # Before the first request there is nothing that it could correct.
            begin = stage.demand("", 0).period.begin
            await stage.ask(limits, f"s{number}")
            await stage.store.spend(stage.key_id, begin, amount)
    return None


async def about_midnight(redis: Redis, wrong_s: float) -> Stage:
    """Return a stage on which a clock so wrong shows another day than Redis does."""
    clock = FakeClock()
    clock.forward(DAY - wrong_s + (1 if wrong_s > 0 else -1))
    return await in_redis(clock, redis)


@pytest.mark.parametrize("wrong_s", [-5, 5])
async def test_the_day_is_that_of_redis_whatever_a_replica_believes(
    redis: Redis, wrong_s: float
) -> None:
    """A replica whose clock is wrong gets no day's budget early, nor pays for two."""
    stage = await about_midnight(redis, wrong_s)
    limits = Limits(budget=Budget(5, "day"))
    await stage.ask(limits, "a", 5)
    midnight = stage.demand("", 0).period.end
    other = await stage.ask(limits, "b", 5, wrong_s)
    assert other.refused is Limit.BUDGET
    assert other.retry_after_s == midnight - stage.clock().timestamp()


@pytest.mark.parametrize("wrong_s", [-5, 5])
async def test_a_budget_is_not_begun_with_what_belongs_to_another_day(
    redis: Redis, wrong_s: float
) -> None:
    stage = await about_midnight(redis, wrong_s)
    limits = Limits(budget=Budget(5, "day"))
    demand = stage.demand("a", 5, wrong_s)
    today = stage.demand("", 0).period.begin
    assert demand.period.begin != today
    of_another = Recorded(demand.period.begin, 0)
    for recorded in (None, of_another):
        asked = await stage.store.reserve(stage.key_id, limits, demand, recorded)
        assert asked == today


async def test_a_script_that_redis_has_forgotten_is_sent_again(redis: Redis) -> None:
    stage = await in_redis(FakeClock(), redis)
    await stage.ask(Limits(rpm=5), "a")
    await redis.script_flush()
    outcome = await stage.ask(Limits(rpm=5), "b")
    assert outcome.requests is not None
    assert outcome.requests.left == 3


async def test_many_at_once_get_no_more_than_the_limit(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many replicas ask at the same moment, and there is one Redis."""
    monkeypatch.setattr(redis_batches, "TIMEOUT_S", 10)  # a busy machine is no fault
    key_id, told = str(uuid4()), Recorded(0, 0)
    demands = [Demand(f"r{n}", 10, Period(0, 0, 2**40, 2**41)) for n in range(60)]
    limits = Limits(rpm=50, concurrency=20, budget=Budget(10_000, "day"))
    replicas = [RedisLimits(redis) for _ in demands]
    outcomes = await asyncio.gather(
        *(
            replica.reserve(key_id, limits, demand, told)
            for replica, demand in zip(replicas, demands, strict=True)
        )
    )
    admitted = [o for o in outcomes if isinstance(o, Outcome) and o.refused is None]
    assert len(admitted) == 20


async def test_the_counters_of_a_key_stand_in_one_slot_and_end_by_themselves(
    redis: Redis,
) -> None:
    store, key_id = RedisLimits(redis), str(uuid4())
    await store.reserve(
        key_id,
        Limits(rpm=5, tpm=5, concurrency=5),
        Demand("a", 5, Period(0, 0, 0, 0)),
        None,
    )
    names = [name async for name in redis.scan_iter(f"*{key_id}*")]
    assert len(names) == 3
    assert all(f"{{{key_id}}}".encode() in name for name in names)
    assert all([await redis.ttl(name) > 0 for name in names])


async def test_a_request_with_limits_is_two_commands_to_redis(redis: Redis) -> None:
    """Each is a trip that its client waits for, or its successor."""
    stage = await in_redis(FakeClock(), redis)
    limits = Limits(rpm=9, tpm=99, concurrency=9, budget=Budget(99, "day"))
    await stage.ask(limits, "first", 5)  # the script is known from now on
    before = await commands_of_clients(redis)
    await stage.ask(limits, "a", 5)
    await stage.store.settle(stage.key_id, "a", 3)
    told = await commands_of_clients(redis) - before
    assert {name: n for name, n in told.items() if name != "info"} == {"evalsha": 2}


async def commands_of_clients(redis: Redis) -> Counter[str]:
    """Return how often Redis was asked for what, but for what scripts ask for."""
    asked: Counter[str] = Counter()
    for name, stats in (await redis.info("commandstats")).items():
        command = name.removeprefix("cmdstat_")
        if command in {"evalsha", "eval", "info", "ping", "script", "client"}:
            asked[command] = stats["calls"]
    return asked
