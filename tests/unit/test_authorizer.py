"""The use case as a whole, on a key store in memory."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from authz.authorizer import Authorizer
from authz.core.credential import mint
from authz.core.model import Allow, Deny, Reason, Request
from authz.errors import StoreUnavailable
from authz.issuing import issue
from authz.lookup import Freshness, Lookup
from authz.metrics import Metrics
from tests.fakes import FakeClock, MemoryKeys

BODY = b'{"model":"llama3.1"}'


class House:
    """An Authorizer with one key."""

    def __init__(self) -> None:
        self.store, self.clock = MemoryKeys(), FakeClock()
        hour = timedelta(hours=1)
        metrics = Metrics(CollectorRegistry())
        fresh = Freshness(hour, hour, 10)
        lookup = Lookup(self.store, None, fresh, self.clock, metrics)
        self.authorizer = Authorizer(lookup, self.clock)

    async def request(self, path: str = "/api/chat", **more: bool) -> Request:
        new, key = issue("a", models=["*"], scopes=["inference"], expires_at=None)
        await self.store.create(new)
        return Request("POST", path, {"x-api-key": key}, BODY, **more)


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
