"""The use case as a whole, on a key store in memory."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from authz.authorizer import Authorizer
from authz.core.credential import Peppers, mint
from authz.core.limits import NONE, Limits
from authz.core.model import Allow, Asked, Deny, Reason, Request
from authz.errors import BackendError, StoreUnavailable
from authz.issuing import issue
from authz.lookup import Freshness, Lookup
from authz.metrics import Metrics
from tests.fakes import FakeClock, MemoryKeys, own_limiter

BODY = b'{"model":"llama3.1"}'
LARGE = BODY[:-1] + b',"prompt":"' + b"x" * 64 * 1024 + b'"}'


class ElsewhereReader:
    """A BodyReader that keeps what it is asked and gives the answer it was told."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.answer: Asked | Deny | BackendError = Deny(Reason.MODEL_MISSING)

    async def read(self, _key_id: str, request: Request) -> Asked | Deny:
        self.asked.append(request)
        if isinstance(self.answer, BackendError):
            raise self.answer
        return self.answer


class House:
    """An Authorizer with one key."""

    def __init__(self) -> None:
        self.store, self.clock = MemoryKeys(), FakeClock()
        hour = timedelta(hours=1)
        metrics = Metrics(CollectorRegistry())
        fresh = Freshness(hour, hour, size=10, misses_per_s=10)
        lookup = Lookup(self.store, None, fresh, self.clock, metrics)
        self.elsewhere = ElsewhereReader()
        self.authorizer = Authorizer(
            lookup, Peppers(), self.clock, self.elsewhere, own_limiter(self.clock)
        )

    async def request(
        self,
        path: str = "/api/chat",
        body: bytes = BODY,
        *,
        headers_only: bool = False,
        limits: Limits = NONE,
    ) -> Request:
        name = f"key {len(self.store.records)}"
        new, key = issue(
            name, models=["*"], scopes=["inference"], expires_at=None, limits=limits
        )
        await self.store.create(new)
        return Request("POST", path, {"x-api-key": key}, body, headers_only)


async def test_a_good_request_is_allowed() -> None:
    house = House()
    verdict = await house.authorizer.authorize(await house.request())
    assert isinstance(verdict, Allow)
    assert verdict.model == "registry.ollama.ai/library/llama3.1:latest"
    assert verdict.final


async def test_the_check_before_the_body_goes_as_far_as_the_endpoint() -> None:
    house = House()
    early = await house.request(headers_only=True)
    verdict = await house.authorizer.authorize(early)
    assert isinstance(verdict, Allow)
    assert (verdict.model, verdict.final) == (None, False)
    closed = Request("POST", "/api/pull", early.headers, b"", headers_only=True)
    assert await house.authorizer.authorize(closed) == Deny(Reason.SCOPE_MISSING)


async def test_the_credential_is_judged_before_anything_is_looked_up() -> None:
    house = House()
    broken = mint(bytes(32))[:-1]
    for headers in ({}, {"x-api-key": broken}):
        verdict = await house.authorizer.authorize(Request("", "", headers, b""))
        assert isinstance(verdict, Deny)
    assert house.store.asked == 0


async def test_a_store_that_fails_is_an_error_not_a_denial() -> None:
    house = House()
    request = await house.request()
    house.store.broken = True
    with pytest.raises(StoreUnavailable):
        await house.authorizer.authorize(request)


async def test_a_small_body_is_read_at_once_and_a_large_one_elsewhere() -> None:
    house = House()
    await house.authorizer.authorize(await house.request())
    assert house.elsewhere.asked == []
    large = await house.request(body=LARGE)
    assert await house.authorizer.authorize(large) == Deny(Reason.MODEL_MISSING)
    assert house.elsewhere.asked == [large]


async def test_a_model_that_was_read_elsewhere_is_judged_like_any_other() -> None:
    house = House()
    house.elsewhere.answer = Asked(("registry.ollama.ai/library/llama3.1:latest",))
    verdict = await house.authorizer.authorize(await house.request(body=LARGE))
    assert isinstance(verdict, Allow)
    assert verdict.model == house.elsewhere.answer.model


async def test_a_large_body_of_a_stranger_is_not_read() -> None:
    house = House()
    stranger = Request("POST", "/api/chat", {}, LARGE)
    verdict = await house.authorizer.authorize(stranger)
    assert verdict == Deny(Reason.CREDENTIAL_MISSING)
    assert house.elsewhere.asked == []


async def test_a_large_body_that_nobody_could_read_is_an_error_not_a_denial() -> None:
    house = House()
    house.elsewhere.answer = BackendError()
    with pytest.raises(BackendError):
        await house.authorizer.authorize(await house.request(body=LARGE))


async def test_what_a_limited_key_asks_without_an_id_does_not_pass() -> None:
    """All such requests would hold what the first of them reserved."""
    house = House()
    request = await house.request(limits=Limits(rpm=1000))
    with pytest.raises(BackendError):
        await house.authorizer.authorize(request)
    headers = {**request.headers, "x-request-id": "an id"}
    named = Request(request.method, request.path, headers, BODY)
    assert isinstance(await house.authorizer.authorize(named), Allow)
