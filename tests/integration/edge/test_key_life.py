"""What the command line does to a key holds for the next request."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx

from tests.gateway import own_gateway
from tests.programs import authz

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway import Gateway, Standin, Stores

CHAT = {
    "model": "llama3.1",
    "stream": False,
    "messages": [{"role": "user", "content": "Hello"}],
}


class House:
    """A running gateway and the command line beside it."""

    def __init__(self, gateway: Gateway[Any], folder: Path) -> None:
        self._url, self._folder = gateway.url, folder
        self._env = {"AUTHZ_DATABASE_URL": gateway.database_url}
        self.name = f"life {uuid4().hex}"

    async def keys(self, *words: str) -> dict[str, Any]:
        ended = await authz("keys", *words, "--json", cwd=self._folder, env=self._env)
        assert ended.status == 0, ended
        return dict(json.loads(ended.out))

    async def create(self) -> str:
        created = await self.keys("create", "--name", self.name, "--models", "llama3.1")
        return str(created["key"])

    async def status(self, key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers) as client:
            return (await client.post("/api/chat", json=CHAT)).status_code


async def test_a_disabled_key_is_refused_at_once_and_an_enabled_one_accepted(
    gateway: Gateway[Standin], tmp_path: Path
) -> None:
    house = House(gateway, tmp_path)
    key = await house.create()
    for command, status in (("enable", 200), ("disable", 401), ("enable", 200)):
        await house.keys(command, house.name)
        assert await house.status(key) == status


async def test_a_key_that_is_rotated_without_grace_is_refused_at_once(
    gateway: Gateway[Standin], tmp_path: Path
) -> None:
    house = House(gateway, tmp_path)
    old = await house.create()
    assert await house.status(old) == 200
    new = (await house.keys("rotate", house.name, "--grace", "0"))["key"]
    assert await house.status(old) == 401
    assert await house.status(new) == 200


async def test_within_the_grace_both_secrets_are_accepted(
    gateway: Gateway[Standin], tmp_path: Path
) -> None:
    house = House(gateway, tmp_path)
    old = await house.create()
    assert await house.status(old) == 200
    new = (await house.keys("rotate", house.name))["key"]
    assert await house.status(old) == await house.status(new) == 200
    await house.keys("revoke", house.name)
    assert await house.status(old) == await house.status(new) == 401


async def test_an_update_holds_at_once(
    gateway: Gateway[Standin], tmp_path: Path
) -> None:
    house = House(gateway, tmp_path)
    key = await house.create()
    for models, status in (("qwen3", 403), ("*", 200), ("qwen3:*", 403)):
        await house.keys("update", house.name, "--models", models)
        assert await house.status(key) == status
    await house.keys("update", house.name, "--models", "*", "--scopes", "read")
    assert await house.status(key) == 403


async def test_what_was_used_is_written_when_the_service_ends(
    stores: Stores, tmp_path: Path
) -> None:
    body = b"{}"
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with own_gateway(stores, tmp_path) as gateway:
        gateway.upstream.script = (head + body,)
        house = House(gateway, tmp_path)
        old = await house.create()
        new = (await house.keys("rotate", house.name))["key"]
        assert await house.status(new) == 200
        gateway.authz.process.send_signal(signal.SIGTERM)
        assert await gateway.authz.process.wait() == 0
        shown = await house.keys("show", house.name)
    used, unused = shown["secrets"]
    assert (used["prefix"], unused["prefix"]) == (new[:11], old[:11])
    assert used["last_used_at"] == shown["last_used_at"] is not None
    assert unused["last_used_at"] is None
