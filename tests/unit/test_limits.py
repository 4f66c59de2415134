"""The rules of limits, by their promises: any schedule, any window."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.core.limits import (
    KEPT_S,
    LEASE_S,
    WINDOW_S,
    Budget,
    Counters,
    Demand,
    Limit,
    Limits,
    Outcome,
    Period,
    estimate,
    parse_limits,
)

NOON = 1_800_014_400.0
DAY = 86_400
MIDNIGHT = int(NOON) // DAY * DAY
TODAY = Period(MIDNIGHT - DAY, MIDNIGHT, MIDNIGHT + DAY, MIDNIGHT + 2 * DAY)


@dataclass
class Stage:
    """Counters, a clock, and a diary of what was admitted."""

    limits: Limits
    now: float = NOON
    counters: Counters = field(default_factory=Counters)
    admitted: list[tuple[float, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counters.spend(TODAY.begin, 0)

    def ask(self, tokens: int = 0) -> Outcome:
        request_id = f"r{len(self.admitted)}"
        demand = Demand(request_id, tokens, TODAY)
        outcome = self.counters.reserve(self.limits, demand, self.now)
        if outcome.refused is None:
            self.admitted.append((self.now, request_id, tokens))
        return outcome

    def end(self, request_id: str, tokens: int | None) -> bool:
        return self.counters.settle(request_id, tokens, self.now)


@pytest.mark.parametrize("limits", [Limits(rpm=9), Limits(rpm=9, tpm=9)])
def test_a_key_that_is_used_in_every_second_takes_no_more_memory(
    limits: Limits,
) -> None:
    """Also where replicas count together, and one only remembers what it let pass."""
    counters, sizes = Counters(), []
    for second in range(1000):
        counters.count(limits, Demand("r", 5, TODAY), NOON + second)
        counters.settle("r", 3, NOON + second)
        sizes.append(len(pickle.dumps(counters)))
    assert max(sizes) <= sizes[2 * WINDOW_S] + 20


def test_no_minute_admits_more_requests_than_the_limit() -> None:
    stage = Stage(Limits(rpm=3))
    assert [stage.ask().refused for _ in range(4)] == [None] * 3 + [Limit.REQUESTS]


def test_whoever_waits_as_long_as_told_is_admitted_and_not_a_second_earlier() -> None:
    stage = Stage(Limits(rpm=1), now=NOON + 0.4)
    stage.ask()
    wait_s = stage.ask().retry_after_s
    stage.now += wait_s - 1
    assert stage.ask().refused is Limit.REQUESTS
    stage.now += 1
    assert stage.ask().refused is None


def test_a_limit_that_was_lowered_tells_how_long_to_wait() -> None:
    stage = Stage(Limits(rpm=3))
    for _ in range(3):
        stage.ask()
        stage.now += 10
    stage.limits = Limits(rpm=1)
    stage.now += stage.ask().retry_after_s
    assert stage.ask().refused is None


def test_what_is_left_and_when_all_of_it_is_back_is_told() -> None:
    stage = Stage(Limits(rpm=5, tpm=1000))
    first = stage.ask(300).requests, stage.ask(300).tokens
    assert first[0] is not None
    assert (first[0].limit, first[0].left, first[0].reset_s) == (5, 4, WINDOW_S + 1)
    assert first[1] is not None
    assert (first[1].limit, first[1].left, first[1].reset_s) == (
        1000,
        400,
        WINDOW_S + 1,
    )


def test_what_was_reserved_and_not_used_is_given_back() -> None:
    stage = Stage(Limits(tpm=1000))
    stage.ask(1000)
    assert stage.ask(10).refused is Limit.TOKENS
    stage.end("r0", 100)
    answer = stage.ask(10)
    assert answer.refused is None
    assert answer.tokens is not None
    assert answer.tokens.left == 890


def test_what_is_never_settled_stays_charged() -> None:
    stage = Stage(Limits(budget=Budget(100, "day")))
    stage.ask(100)
    stage.now += KEPT_S + 1
    assert stage.ask(1).refused is Limit.BUDGET
    assert not stage.end("r0", 0)


def test_a_request_that_does_not_tell_what_it_used_stays_charged() -> None:
    stage = Stage(Limits(budget=Budget(100, "day")))
    stage.ask(100)
    stage.end("r0", None)
    assert stage.ask(1).refused is Limit.BUDGET


def test_nothing_is_settled_twice() -> None:
    stage = Stage(Limits(budget=Budget(100, "day")))
    stage.ask(50)
    assert stage.end("r0", 10)
    assert not stage.end("r0", 10)
    answers = [stage.ask(45).refused, stage.ask(45).refused, stage.ask(1).refused]
    assert answers == [None, None, Limit.BUDGET]


def test_requests_without_tokens_pass_when_tokens_are_used_up() -> None:
    stage = Stage(Limits(tpm=10, budget=Budget(10, "day")))
    stage.ask(10)
    assert stage.ask(1).refused is Limit.BUDGET
    assert stage.ask(0).refused is None


def test_a_used_up_budget_tells_when_the_next_one_begins() -> None:
    stage = Stage(Limits(budget=Budget(10, "day")))
    stage.ask(10)
    assert stage.ask(1).retry_after_s == TODAY.end - NOON


def test_a_slot_is_free_again_when_its_request_ends() -> None:
    stage = Stage(Limits(concurrency=1))
    stage.ask()
    assert stage.ask().refused is Limit.CONCURRENCY
    stage.end("r0", 0)
    assert stage.ask().refused is None


def test_a_slot_of_which_nothing_is_heard_ends_with_its_lease() -> None:
    stage = Stage(Limits(concurrency=1))
    stage.ask()
    stage.now += LEASE_S - 1
    assert stage.ask().refused is Limit.CONCURRENCY
    stage.now += 1
    assert stage.ask().refused is None


def test_a_slot_that_is_renewed_outlives_its_lease() -> None:
    stage = Stage(Limits(concurrency=1))
    stage.ask()
    for _ in range(10):
        stage.now += LEASE_S / 2
        assert stage.counters.renew("r0", stage.now)
    assert stage.ask().refused is Limit.CONCURRENCY


def test_one_request_id_holds_no_two_slots() -> None:
    """A gateway in front may keep the ids of its clients."""
    counters, limits = Counters(), Limits(concurrency=5)
    demand = Demand("same", 0, TODAY)
    assert counters.reserve(limits, demand, NOON).refused is None
    assert counters.reserve(limits, demand, NOON).refused is Limit.CONCURRENCY


def test_a_budget_must_be_told_before_it_is_used() -> None:
    counters = Counters()
    tomorrow = Period(TODAY.begin, TODAY.end, TODAY.next_end, TODAY.next_end + DAY)
    assert not counters.enter(TODAY)
    counters.spend(TODAY.begin, 7)
    assert counters.enter(TODAY)
    assert counters.enter(tomorrow), "of a new day nothing is spent"
    assert not counters.enter(TODAY), "the day before is forgotten"


def test_what_does_not_follow_on_a_known_period_must_be_told() -> None:
    """As when a budget of a month becomes one of a day."""
    counters = Counters()
    counters.spend(TODAY.begin - 20 * DAY, 7)
    assert not counters.enter(TODAY)


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0.01, 70)),
        st.tuples(st.just("ask"), st.integers(0, 60)),
        st.tuples(st.just("end"), st.integers(0, 120)),
        st.tuples(st.just("vanish"), st.just(0)),
        st.tuples(st.just("renew"), st.just(0)),
    ),
    max_size=120,
)
_LIMITS = st.builds(
    Limits,
    rpm=st.none() | st.integers(1, 8),
    tpm=st.none() | st.integers(1, 200),
    concurrency=st.none() | st.integers(1, 4),
    budget=st.none() | st.builds(Budget, st.integers(1, 500), st.just("day")),
)


@settings(max_examples=300, deadline=None)
@given(_LIMITS, _STEPS)
def test_no_schedule_gets_more_than_the_limits_and_what_was_in_flight(
    limits: Limits, steps: list[tuple[str, float]]
) -> None:
    stage = Stage(limits)
    leases: dict[str, float] = {}
    used: list[tuple[float, int]] = []
    for what, amount in steps:
        oldest = next(iter(leases), "")
        if what == "wait":
            stage.now += amount
        elif what == "ask":
            before = len(stage.admitted)
            if stage.ask(int(amount)).refused is None:
                _was_right(stage, leases, used, int(amount))
                leases[f"r{before}"] = stage.now + LEASE_S
        elif what == "renew" and stage.counters.renew(oldest, stage.now):
            leases[oldest] = stage.now + LEASE_S
        elif what in {"end", "vanish"} and oldest:
            del leases[oldest]
            if what == "end" and stage.end(oldest, int(amount)):
                used.append((stage.now, int(amount)))
    stage.now += max(LEASE_S, WINDOW_S + 1)
    free = [stage.ask().refused for _ in range(limits.concurrency or 0)]
    assert Limit.CONCURRENCY not in free, "every slot comes back"


def _was_right(
    stage: Stage, leases: dict[str, float], used: list[tuple[float, int]], tokens: int
) -> None:
    """Check an admission, the latest of the stage, by what everybody can see."""
    limits, now = stage.limits, stage.now
    if limits.rpm:
        recent = [moment for moment, _, _ in stage.admitted if moment > now - WINDOW_S]
        assert len(recent) <= limits.rpm
    if limits.concurrency:
        running = [until for until in leases.values() if until > now]
        assert len(running) < limits.concurrency
    if limits.tpm and tokens:
        assert sum(n for at, n in used if at > now - WINDOW_S) < limits.tpm
    if limits.budget and tokens:
        assert sum(n for _, n in used) < limits.budget.tokens


@pytest.mark.parametrize(
    "text",
    ["", "rpm=60", "rpm=60,tpm=1000,concurrency=4,budget=5/day", "budget=1000/month"],
)
def test_limits_are_written_as_they_are_read(text: str) -> None:
    assert str(parse_limits(text)) == text
    assert bool(parse_limits(text)) is bool(text)


@pytest.mark.parametrize(
    "text",
    [
        *("rpm", "rpm=0", "rpm=-1", "rpm=1.5", "rpm=01", "rpm=1e3", "requests=1"),
        *("budget=5", "budget=5/week", "budget=0/day", "tpm=1000000000000"),
    ],
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a limit is"):
        parse_limits(text)


@pytest.mark.parametrize(
    ("amounts", "tokens"),
    [
        ({}, 0),
        ({"text_bytes": 400, "num_predict": 50}, 150),
        ({"text_bytes": 401, "num_predict": -1}, 101 + 1024),
        ({"text_bytes": 400}, 100),
        ({"text_bytes": 4, "images": 2}, 2001),
        ({"text_bytes": 4, "num_predict": 0}, 1 + 1024),
    ],
)
def test_a_request_is_estimated_by_what_it_asks_for(
    amounts: dict[str, float], tokens: int
) -> None:
    assert estimate(amounts) == tokens
