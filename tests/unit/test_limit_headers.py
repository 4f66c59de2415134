"""What a client is told of its limits: OpenAI's names, and right to the second."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from envoy_data_plane.envoy.service.auth import v3 as envoy
from google.protobuf.json_format import MessageToDict

from authz.core.limits import Limit, Outcome, Quota, parse_limits
from authz.core.model import Allow, Deny, Reason
from authz.edge.translate import response_of
from authz.pb import external_auth_pb2 as pb
from tests.fakes import FakeClock, own_limiter
from tests.verdicts import ROOT

if TYPE_CHECKING:
    from authz.limiter import Limiter

# When a second begins, when it ends, and between.
FRACTIONS = [0, 1, 400_000, 999_999]


async def ask(
    limiter: Limiter, limits: str, request_id: str, tokens: int
) -> tuple[bool, dict[str, str]]:
    """Return whether a request passes, and the headers that tell of its limits."""
    allow = Allow(replace(ROOT, limits=parse_limits(limits)), "/api/chat", "m")
    verdict = await limiter.admit(allow, request_id, tokens)
    message = response_of(verdict)
    if isinstance(verdict, Deny):
        return False, headers_of(message)
    metadata = MessageToDict(pb.CheckResponse.FromString(message).dynamic_metadata)
    return True, metadata["limited"]


def headers_of(message: bytes) -> dict[str, str]:
    response = envoy.CheckResponse.parse(message)
    assert response.denied_response is not None
    headers = [option.header for option in response.denied_response.headers]
    return {header.key: header.value for header in headers if header}


QUOTAS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "61s",
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "7",
    "x-ratelimit-reset-tokens": "3s",
}


@pytest.mark.parametrize(
    ("limits", "told_at_once"),
    [
        ("concurrency=1", [True]),
        ("rpm=9,concurrency=9", [True]),
        ("concurrency=10", [False, True]),  # 9 slots are left, then 8
        ("concurrency=30", [False] * 3 + [True]),
        ("rpm=5,tpm=5", [False]),
    ],
)
async def test_envoy_is_told_whose_slot_others_may_wait_for(
    limits: str, told_at_once: list[bool]
) -> None:
    limiter = own_limiter(FakeClock())
    allow = Allow(replace(ROOT, limits=parse_limits(limits)), "/api/chat", "m")
    for number, expected in enumerate(told_at_once):
        verdict = await limiter.admit(allow, f"{number}", 1)
        message = pb.CheckResponse.FromString(response_of(verdict))
        assert ("slot" in message.dynamic_metadata.fields) is expected


@pytest.mark.parametrize(
    ("limit", "reason", "others"),
    [
        (Limit.REQUESTS, Reason.LIMIT_REQUESTS, {}),
        (Limit.TOKENS, Reason.LIMIT_TOKENS, {}),
        (Limit.CONCURRENCY, Reason.LIMIT_CONCURRENCY, {}),
        (Limit.BUDGET, Reason.LIMIT_BUDGET, {"x-should-retry": "false"}),
    ],
)
def test_a_429_says_when_to_come_again_and_what_is_left(
    limit: Limit, reason: Reason, others: dict[str, str]
) -> None:
    outcome = Outcome(limit, 41, Quota(60, 0, 61), Quota(1000, 7, 3))
    told = headers_of(response_of(Deny(reason, limited=outcome)))
    assert told == QUOTAS | {"retry-after": "41"} | others


def test_limits_that_a_key_has_not_are_not_told() -> None:
    outcome = Outcome(Limit.CONCURRENCY, 1, None, None)
    told = headers_of(response_of(Deny(Reason.LIMIT_CONCURRENCY, limited=outcome)))
    assert told == {"retry-after": "1"}


@pytest.mark.parametrize("limits", ["rpm=1", "tpm=5"])
@pytest.mark.parametrize("micros", FRACTIONS)
async def test_whoever_waits_as_long_as_told_passes_and_not_a_second_earlier(
    limits: str, micros: int
) -> None:
    clock = FakeClock()
    clock.forward(micros / 1_000_000)
    limiter = own_limiter(clock)
    await ask(limiter, limits, "a", 5)
    clock.forward(7.25)
    passes, told = await ask(limiter, limits, "b", 5)
    assert not passes
    clock.forward(int(told["retry-after"]) - 1)
    assert not (await ask(limiter, limits, "c", 5))[0]
    clock.forward(1)
    assert (await ask(limiter, limits, "d", 5))[0]


@pytest.mark.parametrize(
    ("limits", "name"), [("rpm=9", "requests"), ("tpm=9", "tokens")]
)
@pytest.mark.parametrize("micros", FRACTIONS)
async def test_all_is_left_again_when_it_was_said_and_not_a_second_earlier(
    limits: str, name: str, micros: int
) -> None:
    clock = FakeClock()
    clock.forward(micros / 1_000_000)
    for early_s, left in ((1, "7"), (0, "8")):
        limiter = own_limiter(clock)
        _, told = await ask(limiter, limits, "a", 1)
        assert told[f"x-ratelimit-remaining-{name}"] == "8"
        assert told[f"x-ratelimit-reset-{name}"].endswith("s")
        clock.forward(int(told[f"x-ratelimit-reset-{name}"][:-1]) - early_s)
        _, told = await ask(limiter, limits, "b", 1)
        assert told[f"x-ratelimit-remaining-{name}"] == left


@pytest.mark.parametrize(
    ("budget", "now", "seconds"),
    [
        ("day", "2026-03-28T23:59:59.000001", 1),
        ("day", "2026-03-29T00:00:00", 86_400),
        ("month", "2028-02-01T00:00:00", 29 * 86_400),
        ("month", "2026-12-31T23:59:58.5", 2),
    ],
)
async def test_a_used_up_budget_says_to_the_second_when_the_next_one_begins(
    budget: str, now: str, seconds: int
) -> None:
    """Days have 24 hours, months their own days: all in UTC."""
    clock = FakeClock()
    clock.now = clock.now.fromisoformat(f"{now}+00:00")
    limiter = own_limiter(clock)
    await ask(limiter, "concurrency=9,budget=5/" + budget, "a", 5)
    passes, told = await ask(limiter, "concurrency=9,budget=5/" + budget, "b", 5)
    assert (passes, told["retry-after"]) == (False, str(seconds))
    clock.forward(seconds - 1)
    assert not (await ask(limiter, "budget=5/" + budget, "c", 5))[0]
    clock.now += timedelta(seconds=1)
    assert (await ask(limiter, "budget=5/" + budget, "d", 5))[0]
