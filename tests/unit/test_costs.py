"""What a check costs, counted and not timed, so that any machine sees a regression.

The bounds lie a little above what was counted with Python 3.11; later ones take fewer
calls, and tell of fewer instructions. Whoever raises a bound says what it buys.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tracemalloc
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest
from prometheus_client import CollectorRegistry

from authz.adapters.postgres_usage import PostgresUsageLog
from authz.authorizer import Authorizer
from authz.core.credential import Peppers
from authz.core.limits import NONE, Limits, Outcome
from authz.core.model import Scope
from authz.edge.access_log import AccessLog
from authz.edge.check import Check
from authz.edge.translate import request_of
from authz.issuing import issue
from authz.limiter import Limiter
from authz.lookup import Freshness, Lookup
from authz.metrics import Metrics
from authz.pb.external_auth_pb2 import CheckRequest
from tests.access_logs import entry, message
from tests.fakes import MemoryCache, MemoryKeys, MemoryUsage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from types import FrameType

    from authz.core.limits import Demand, Recorded
    from authz.core.model import Request
    from authz.ports import BodyReader, UseLog, Verified

    Trace = Callable[[FrameType, str, object], "Trace | None"]

# Of one warm check: functions called (Python's and C's), instructions of Python.
MOST_CALLS, MOST_STEPS = 210, 2000
# Of one entry of the access log.
MOST_CALLS_AN_ENTRY = 67
MOST_BYTES = 8 * 1024

MODELS = ("registry.ollama.ai/library/llama3.*:*",)
LIMITS = Limits(rpm=100, tpm=100_000, concurrency=4)
BODY = json.dumps(
    {
        "model": "llama3.1",
        "stream": False,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Hello, how are you?"},
        ],
    }
).encode()


class CountedCache(MemoryCache):
    """A KeyCache that counts what it is asked."""

    commands = 0

    async def get(self, digests: Sequence[bytes]) -> Verified | None:
        self.commands += 1
        return await super().get(digests)

    async def put(self, verified: Verified) -> None:
        self.commands += 1
        await super().put(verified)


class CountedLimits:
    """A LimitStore that admits all and counts what it is asked."""

    commands = 0

    async def reserve(
        self, _key: str, _limits: Limits, _demand: Demand, _recorded: Recorded | None
    ) -> Outcome | int:
        self.commands += 1
        return Outcome()

    async def settle(self, _key: str, _request: str, _tokens: int | None) -> bool:
        self.commands += 1
        return True

    async def renew(self, _key: str, _request: str) -> bool:
        raise NotImplementedError

    async def spend(self, _key: str, _begin: int, _tokens: int) -> None:
        raise NotImplementedError


class Forgetful:
    """A UseLog."""

    def note(self, digest: bytes) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Service:
    """A Check as `authz serve` has it, but for what is counted."""

    check: Check
    keys: MemoryKeys
    cache: CountedCache
    limits: CountedLimits
    request: bytes

    async def answer(self) -> bytes:
        return await self.check.answer(self.read(), None)

    def read(self) -> Request:
        return request_of(self.request)

    def answer_at_once(self) -> None:
        """Answer without a loop; fails where anything is waited for."""
        try:
            self.check.answer(self.read(), None).send(None)
        except StopIteration:
            return
        pytest.fail("it waits for something")


def now() -> datetime:
    return datetime.now(UTC)


async def service(limits: Limits = NONE) -> Service:
    keys, cache, counted = MemoryKeys(), CountedCache(), CountedLimits()
    new, raw_key = issue(
        "k",
        models=MODELS,
        scopes=[Scope.INFERENCE.value],
        expires_at=None,
        limits=limits,
    )
    await keys.create(new)
    metrics = Metrics(CollectorRegistry())
    hour = timedelta(hours=1)
    lookup = Lookup(keys, cache, Freshness(hour, hour, 10, 100), now, metrics)
    lookup.listening()
    limiter = Limiter(counted, MemoryUsage(), now, metrics)
    no_bodies = cast("BodyReader", None)
    authorizer = Authorizer(lookup, Peppers(), now, no_bodies, limiter)
    check = Check(authorizer, metrics, cast("UseLog", Forgetful()))
    return Service(check, keys, cache, counted, check_request(raw_key))


def check_request(raw_key: str) -> bytes:
    """Return what Envoy asks of a small chat."""
    check = CheckRequest()
    http = check.attributes.request.http
    http.method, http.path, http.raw_body = "POST", "/api/chat", BODY
    http.headers.update(
        {
            "authorization": f"Bearer {raw_key}",
            "content-length": str(len(BODY)),
            "content-type": "application/json",
            "x-request-id": "0b7e6a52-5a4e-4c0e-9d7a-3f2b1c0d9e8f",
            "x-envoy-auth-partial-body": "false",
            "x-envoy-external-address": "192.0.2.1",
        }
    )
    return check.SerializeToString()


@pytest.fixture
async def warm() -> Service:
    """A service that knows the key, and has answered until nothing is new to it."""
    found = await service()
    for _ in range(3):
        await found.answer()
    return found


@contextmanager
def counted_calls() -> Iterator[list[str]]:
    """Collect the calls of functions of the block, and one that ends it."""
    calls: list[str] = []

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        if event in {"call", "c_call"}:
            calls.append(event)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def steps_of(run: Callable[[], None]) -> int:
    """Count instructions of Python; those of a release of it are always the same."""
    steps = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Trace:
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return steps


async def test_a_warm_check_asks_nobody_and_waits_for_nothing(warm: Service) -> None:
    asked, commands = warm.keys.asked, warm.cache.commands
    tasks = asyncio.all_tasks()
    warm.answer_at_once()
    assert (warm.keys.asked, warm.cache.commands) == (asked, commands)
    assert warm.limits.commands == 0
    assert asyncio.all_tasks() == tasks


async def test_a_warm_check_takes_as_many_steps_as_it_did(warm: Service) -> None:
    with counted_calls() as calls:
        warm.answer_at_once()
    assert len(calls) <= MOST_CALLS
    assert steps_of(warm.answer_at_once) <= MOST_STEPS


async def test_a_warm_check_keeps_nothing(warm: Service) -> None:
    def blocks_kept(checks: int) -> int:
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(checks):
            warm.answer_at_once()
        gc.collect()
        return sys.getallocatedblocks() - before

    blocks_kept(1)
    assert blocks_kept(1000) < 100


async def test_a_warm_check_takes_little_memory(warm: Service) -> None:
    tracemalloc.start()
    try:
        warm.answer_at_once()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        warm.answer_at_once()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= MOST_BYTES


async def test_cold_checks_of_a_key_ask_each_store_once() -> None:
    """Redis for the key, PostgreSQL, and Redis again to tell the others."""
    cold = await service()
    await asyncio.gather(*(cold.answer() for _ in range(50)))
    await asyncio.sleep(0)  # others are told in the background
    assert (cold.keys.asked, cold.cache.commands) == (1, 2)


async def test_a_check_with_limits_is_one_command() -> None:
    limited = await service(LIMITS)
    await limited.answer()
    assert limited.limits.commands == 1


async def test_entries_without_limits_ask_nobody_and_take_few_steps() -> None:
    metrics, counted = Metrics(CollectorRegistry()), CountedLimits()
    usage = PostgresUsageLog("", now, metrics)
    limiter = Limiter(counted, MemoryUsage(), now, metrics)
    logs = AccessLog(limiter, usage, now, metrics)
    taken = []
    for number in (8, 8, 24):
        sent = message(*(entry() for _ in range(number)), name="authz.usage")
        with counted_calls() as calls:
            await logs.stream(told(sent), None)
        taken.append(len(calls))
    assert counted.commands == 0
    assert usage.unwritten == 40
    assert (taken[2] - taken[1]) / 16 <= MOST_CALLS_AN_ENTRY


async def told(sent: bytes) -> AsyncIterator[bytes]:
    yield sent
