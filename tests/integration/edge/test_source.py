"""Guesses are bounded by the address that they come from, which Envoy tells."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import httpx

from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.core.credential import mint
from authz.issuing import issue
from tests.acceptance.test_auth_flow import CHAT, assert_error, bearer
from tests.gateway import own_gateway

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.gateway import Stores

NOISY, OTHER = "203.0.113.1", "203.0.113.2"


def behind_one_proxy(directory: Path) -> None:
    """Trust the proxy in front, as docs/operations.md says."""
    file = directory / "listener.yaml"
    text = file.read_text()
    file.write_text(text.replace("_trusted_hops: 0", "_trusted_hops: 1"))


async def ask(url: str, key: str, source: str) -> httpx.Response:
    headers = {
        **bearer(key),
        "x-forwarded-for": source,
        "x-envoy-external-address": source,
    }
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        return await client.post("/api/chat", json=CHAT, headers=headers)


async def made_key(stores: Stores) -> str:
    name = uuid4().hex
    new, key = issue(name, models=["*"], scopes=["inference"], expires_at=None)
    async with connected(stores.database_url) as connection:
        await PostgresKeyWriter(connection, "tests").create(new)
    return key


def unknown_key(number: int) -> str:
    return mint(bytes([number]) * 32)


async def test_a_good_key_is_not_refused_for_the_guesses_of_others(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHZ_UNKNOWN_KEYS_PER_S", "0.01")  # one in a hundred seconds
    # Made before, so that no notification makes them known.
    cold = [await made_key(stores) for _ in range(2)]
    async with own_gateway(stores, tmp_path, behind_one_proxy) as gateway:
        assert_error(await ask(gateway.url, unknown_key(1), NOISY), 401, "unauthorized")
        assert_error(await ask(gateway.url, unknown_key(2), NOISY), 503, "unavailable")
        assert_error(await ask(gateway.url, cold[0], NOISY), 503, "unavailable")
        assert (await ask(gateway.url, cold[1], OTHER)).status_code == 200


async def test_a_client_does_not_choose_its_address(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHZ_UNKNOWN_KEYS_PER_S", "0.01")
    async with own_gateway(stores, tmp_path) as gateway:
        assert_error(await ask(gateway.url, unknown_key(1), NOISY), 401, "unauthorized")
        assert_error(await ask(gateway.url, unknown_key(2), OTHER), 503, "unavailable")
