"""The limiter: shared where it can be, by itself where not, and nothing left held."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from authz import limiter
from authz.core.limits import Limits, parse_limits
from authz.core.model import Allow, Deny, Reason
from authz.errors import CacheUnavailable, StoreUnavailable
from authz.limiter import Limiter
from authz.memory_limits import MemoryLimits
from authz.metrics import Metrics
from tests.fakes import FakeClock, MemoryUsage
from tests.verdicts import ROOT

if TYPE_CHECKING:
    from authz.core.limits import Demand, Outcome, Recorded

BUSY_S = 10.0


def allow(limits: str, key_id: str = "k") -> Allow:
    key = replace(ROOT, id=key_id, limits=parse_limits(limits))
    return Allow(key, "/api/chat", "m")


class SharedLimits(MemoryLimits):
    """What replicas share; ``broken``, ``answers_lost`` and ``gate`` play failures."""

    broken = False
    answers_lost = False
    gate: asyncio.Event | None = None

    async def reserve(
        self, key_id: str, limits: Limits, demand: Demand, recorded: Recorded | None
    ) -> Outcome | int:
        await self._fail()
        outcome = await super().reserve(key_id, limits, demand, recorded)
        if self.gate is not None:
            await self.gate.wait()
        if self.answers_lost:
            raise CacheUnavailable
        return outcome

    async def settle(self, key_id: str, request_id: str, tokens: int | None) -> bool:
        await self._fail()
        return await super().settle(key_id, request_id, tokens)

    async def _fail(self) -> None:
        if self.broken:
            raise CacheUnavailable


@dataclass
class House:
    """Replicas that share counters and records."""

    clock: FakeClock = field(default_factory=FakeClock)
    usage: MemoryUsage = field(default_factory=MemoryUsage)

    def __post_init__(self) -> None:
        self.shared = SharedLimits(self.clock)

    def replica(self, *, alone: bool = True) -> Limiter:
        metrics = Metrics(CollectorRegistry())
        return Limiter(self.shared, self.usage, self.clock, metrics, alone=alone)


def reason(verdict: Allow | Deny) -> Reason | None:
    return verdict.reason if isinstance(verdict, Deny) else None


async def test_replicas_count_together() -> None:
    house = House()
    one, other = house.replica(), house.replica()
    assert reason(await one.admit(allow("rpm=1"), "a", 0)) is None
    assert reason(await other.admit(allow("rpm=1"), "b", 0)) is Reason.LIMIT_REQUESTS


async def test_a_replica_settles_what_another_one_reserved() -> None:
    house = House()
    one, other = house.replica(), house.replica()
    await one.admit(allow("concurrency=1"), "a", 0)
    await other.settle("k", "a", 0)
    assert reason(await one.admit(allow("concurrency=1"), "b", 0)) is None


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "one of workers"])
async def test_a_moment_without_redis_does_not_begin_a_limit_anew(
    alone: bool,
) -> None:
    house = House()
    limiter = house.replica(alone=alone)
    assert reason(await limiter.admit(allow("rpm=1"), "a", 0)) is None
    house.shared.broken = True
    refused = await limiter.admit(allow("rpm=1"), "b", 0)
    assert reason(refused) is Reason.LIMIT_REQUESTS


async def test_a_moment_without_redis_does_not_free_slots_and_tokens() -> None:
    house = House()
    limiter = house.replica()
    await limiter.admit(allow("concurrency=1"), "a", 0)
    await limiter.admit(allow("tpm=10", "other"), "b", 10)
    house.shared.broken = True
    refused = await limiter.admit(allow("concurrency=1"), "c", 0)
    assert reason(refused) is Reason.LIMIT_CONCURRENCY
    refused = await limiter.admit(allow("tpm=10", "other"), "d", 1)
    assert reason(refused) is Reason.LIMIT_TOKENS


async def test_one_of_workers_counts_no_slots_by_itself() -> None:
    """Envoy tells another worker of the end, so that they would not come back."""
    house = House()
    limiter = house.replica(alone=False)
    house.shared.broken = True
    for request_id in "ab":
        verdict = await limiter.admit(allow("concurrency=1"), request_id, 0)
        assert reason(verdict) is None


async def test_without_redis_a_replica_keeps_the_limits_by_itself() -> None:
    house = House()
    limiter = house.replica()
    house.shared.broken = True
    assert reason(await limiter.admit(allow("rpm=1"), "a", 0)) is None
    assert reason(await limiter.admit(allow("rpm=1"), "b", 0)) is Reason.LIMIT_REQUESTS


async def test_a_slot_taken_without_redis_is_free_when_redis_is_back() -> None:
    house = House()
    limiter = house.replica()
    house.shared.broken = True
    await limiter.admit(allow("concurrency=1"), "a", 0)
    house.shared.broken = False
    await limiter.settle("k", "a", 0)
    house.shared.broken = True
    assert reason(await limiter.admit(allow("concurrency=1"), "b", 0)) is None


async def test_what_cannot_be_settled_is_settled_when_redis_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("authz.limiter._RETRY_S", 0.001)
    house = House()
    limiter = house.replica()
    await limiter.admit(allow("concurrency=1"), "a", 0)
    house.shared.broken = True
    await limiter.settle("k", "a", 0)
    house.shared.broken = False
    settling = asyncio.create_task(limiter.keep_settling())
    async with asyncio.timeout(5):
        while reason(await limiter.admit(allow("concurrency=1"), "b", 0)) is not None:
            pass  # each waits a little for the slot
    settling.cancel()


async def test_what_redis_did_for_a_refused_request_without_saying_so_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Redis was slow, and reserved what the replica then refused by itself."""
    monkeypatch.setattr("authz.limiter._RETRY_S", 0.001)
    house = House()
    limiter = house.replica()
    house.shared.broken = True
    await limiter.admit(allow("concurrency=1"), "a", 0)
    house.shared.broken, house.shared.answers_lost = False, True
    refused = await limiter.admit(allow("concurrency=1"), "b", 0)
    assert reason(refused) is Reason.LIMIT_CONCURRENCY
    house.shared.answers_lost = False
    settling = asyncio.create_task(limiter.keep_settling())
    async with asyncio.timeout(5):
        while reason(await limiter.admit(allow("concurrency=1"), "c", 0)) is not None:
            pass  # each waits a little for the slot
    settling.cancel()


async def test_a_replica_left_alone_again_learns_what_was_used_meanwhile() -> None:
    """Its own count is as old as the last time that Redis was away."""
    house = House()
    limiter = house.replica()
    house.shared.broken = True
    await limiter.admit(allow("budget=100/day"), "a", 5)
    house.clock.forward(3600)
    house.shared.broken = False
    for request_id in "bc":
        await limiter.admit(allow("budget=100/day"), request_id, 5)
    house.usage.tokens["k"] = 100
    house.shared.broken = True
    async with asyncio.timeout(5):
        while reason(await limiter.admit(allow("budget=100/day"), "d", 5)) is None:
            pass  # each lets the others run


async def test_a_budget_begins_with_what_is_recorded() -> None:
    """Whoever empties Redis does not get a budget anew."""
    house = House()
    house.usage.tokens["k"] = 100
    verdict = await house.replica().admit(allow("budget=100/day"), "a", 5)
    assert reason(verdict) is Reason.LIMIT_BUDGET


async def test_a_budget_that_nobody_knows_is_undecided() -> None:
    house = House()
    house.usage.broken = True
    with pytest.raises(StoreUnavailable):
        await house.replica().admit(allow("budget=100/day"), "a", 5)


async def test_limits_without_a_budget_do_not_need_the_records() -> None:
    house = House()
    house.usage.broken = True
    verdict = await house.replica().admit(allow("rpm=1,tpm=9,concurrency=1"), "a", 5)
    assert isinstance(verdict, Allow)


async def test_what_redis_missed_of_a_budget_is_told_within_a_minute() -> None:
    house = House()
    limiter = house.replica()
    await limiter.admit(allow("budget=100/day"), "a", 5)
    await limiter.admit(allow("budget=100/day"), "b", 5)
    house.usage.tokens["k"] = 100  # used while Redis did not answer
    house.clock.forward(60)
    await limiter.admit(allow("budget=100/day"), "c", 5)
    async with asyncio.timeout(5):
        while reason(await limiter.admit(allow("budget=100/day"), "d", 5)) is None:
            pass  # each lets the others run


@pytest.mark.parametrize(("budget", "days"), [("day", 1), ("month", 31)])
async def test_a_budget_ends_with_its_day_or_month_in_utc(
    budget: str, days: int
) -> None:
    house = House()  # 1 January 2026, 00:00
    limiter = house.replica()
    await limiter.admit(allow(f"budget=5/{budget}"), "a", 5)
    house.clock.forward(days * 86_400 - 1)
    verdict = await limiter.admit(allow(f"budget=5/{budget}"), "b", 5)
    assert isinstance(verdict, Deny)
    assert verdict.limited is not None
    assert verdict.limited.retry_after_s == 1
    house.clock.forward(1)
    assert reason(await limiter.admit(allow(f"budget=5/{budget}"), "c", 5)) is None


async def test_a_client_that_leaves_while_it_is_checked_holds_nothing() -> None:
    house = House()
    limiter = house.replica()
    house.shared.gate = asyncio.Event()
    leaving = asyncio.create_task(limiter.admit(allow("concurrency=1"), "a", 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    house.shared.gate.set()
    verdict = await limiter.admit(allow("concurrency=1"), "b", 0)
    assert reason(verdict) is None


async def test_a_request_that_comes_right_after_another_has_ended_gets_its_slot() -> (
    None
):
    """A client has its answer a little before we hear that it was the end."""
    limiter = House().replica()
    await limiter.admit(allow("concurrency=1"), "a", 0)
    following = asyncio.create_task(limiter.admit(allow("concurrency=1"), "b", 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await limiter.settle("k", "a", 0)
    assert reason(await following) is None


async def test_those_who_wait_for_slots_get_them_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not the first to ask when many ends are told of at once."""
    monkeypatch.setattr(limiter, "_SLOT_WAIT_S", 3600)
    replica = House().replica()
    waiting = await waiting_behind_two(replica, "cdef")
    async with asyncio.timeout(BUSY_S):
        for name, task in zip("abcd", waiting, strict=True):
            await replica.settle("k", name, 0)
            assert reason(await task) is None
    assert not replica._lines  # noqa: SLF001 - nothing may be kept for a key


async def test_who_loses_a_slot_to_another_goes_on_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limiter, "_SLOT_WAIT_S", 3600)
    house = House()
    replica, other = house.replica(), house.replica()
    await replica.admit(allow("concurrency=1"), "a", 0)
    async with asyncio.timeout(BUSY_S):
        waiting = asyncio.create_task(replica.admit(allow("concurrency=1"), "b", 0))
        await in_line(replica)
        await house.shared.settle("k", "a", 0)
        assert reason(await other.admit(allow("concurrency=1"), "c", 0)) is None
        await replica.settle("k", "a", 0)
        await in_line(replica)
        await replica.settle("k", "c", 0)
        assert reason(await waiting) is None


async def test_an_end_calls_nobody_who_is_just_giving_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limiter, "_SLOT_WAIT_S", 3600)
    replica = House().replica()
    await replica.admit(allow("concurrency=1"), "a", 0)
    giving_up, waiting = (
        asyncio.create_task(replica.admit(allow("concurrency=1"), name, 0))
        for name in "bc"
    )
    await in_line(replica)
    replica._lines["k"][0].cancel()  # noqa: SLF001 - as the end of its time does
    async with asyncio.timeout(BUSY_S):
        await replica.settle("k", "a", 0)
        assert reason(await waiting) is None
    with pytest.raises(asyncio.CancelledError):
        await giving_up


async def test_a_call_that_is_not_needed_goes_to_the_next_in_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It came while the first one was asking, who got a slot without it."""
    monkeypatch.setattr(limiter, "_SLOT_WAIT_S", 3600)
    house = House()
    replica = house.replica()
    waiting = await waiting_behind_two(replica, "cd")
    house.shared.gate = asyncio.Event()
    for name in "ab":
        await replica.settle("k", name, 0)
        await in_line(replica)
    house.shared.gate.set()
    async with asyncio.timeout(BUSY_S):
        assert [reason(await task) for task in waiting] == [None, None]


async def waiting_behind_two(
    replica: Limiter, names: str
) -> list[asyncio.Task[Allow | Deny]]:
    """Have ``a`` and ``b`` hold the two slots of a key, and others wait for them."""
    for name in "ab":
        await replica.admit(allow("concurrency=2"), name, 0)
    waiting = [
        asyncio.create_task(replica.admit(allow("concurrency=2"), name, 0))
        for name in names
    ]
    await in_line(replica)
    return waiting


async def in_line(replica: Limiter) -> None:
    """Wait until all that runs waits."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert replica._lines  # noqa: SLF001 - nothing tells of it outside


async def test_an_end_that_comes_while_a_slot_is_refused_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limiter, "_SLOT_WAIT_S", 3600)
    house = House()
    replica = house.replica()
    await replica.admit(allow("concurrency=1"), "a", 0)
    house.shared.gate = asyncio.Event()
    following = asyncio.create_task(replica.admit(allow("concurrency=1"), "b", 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await replica.settle("k", "a", 0)
    house.shared.gate.set()
    async with asyncio.timeout(BUSY_S):
        assert reason(await following) is None


async def test_an_entry_without_a_key_settles_by_the_id_of_its_request() -> None:
    limiter = House().replica()
    await limiter.admit(allow("concurrency=1"), "a", 0)
    await limiter.settle(None, "never seen", 0)
    await limiter.settle(None, "a", 0)
    assert reason(await limiter.admit(allow("concurrency=1"), "b", 0)) is None


async def test_several_workers_without_redis_are_undecided() -> None:
    """Each would admit the whole limit."""
    house = House()
    metrics = Metrics(CollectorRegistry())
    worker = Limiter(None, house.usage, house.clock, metrics, alone=False)
    with pytest.raises(StoreUnavailable):
        await worker.admit(allow("rpm=1"), "a", 0)


async def test_who_counts_limits_can_be_seen() -> None:
    house, registry = House(), CollectorRegistry()
    replica = Limiter(house.shared, house.usage, house.clock, Metrics(registry))
    seen = []
    for broken in (False, True, False):
        house.shared.broken = broken
        await replica.admit(allow("rpm=9"), str(broken), 0)
        seen.append(registry.get_sample_value("authz_limits_shared"))
    assert seen == [1, 0, 1]


async def test_what_is_never_settled_in_redis_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limiter, "_MOST_UNSETTLED", 3)
    house, registry = House(), CollectorRegistry()
    replica = Limiter(house.shared, house.usage, house.clock, Metrics(registry))
    house.shared.broken = True
    for number in range(5):
        await replica.settle("k", str(number), 1)
    assert registry.get_sample_value("authz_settlements_dropped_total") == 2
