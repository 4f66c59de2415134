"""Limits and usage through the whole gateway: real Envoy, PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import httpx
import pytest

from authz.adapters.postgres import connected
from tests.gateway import own_gateway

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    import asyncpg

    from tests.gateway import Gateway, Standin, Stores

CHAT = {
    "model": "llama3.1",
    "stream": False,
    "messages": [{"role": "user", "content": "Hello"}],
}
STREAM = CHAT | {"stream": True}
WITHIN_S = 20.0


def client(gateway: Gateway[Any], key: str) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=WITHIN_S)


async def test_beyond_its_requests_a_key_gets_the_row_of_429(
    gateway: Gateway[Standin],
) -> None:
    key = await gateway.new_key(limits="rpm=2")
    async with client(gateway, key) as calls:
        answers = [await calls.post("/api/chat", json=CHAT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert left == ["1", "0", "0"]
    refused = answers[2]
    error = refused.json()["error"]
    assert (error["code"], error["message"]) == ("rate_limited", "Too many requests.")
    assert error["request_id"] == refused.headers["x-request-id"]
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert refused.headers["x-ratelimit-limit-requests"] == "2"
    assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-should-retry" not in refused.headers


async def test_beyond_its_budget_a_key_need_not_try_again(
    gateway: Gateway[Standin],
) -> None:
    key = await gateway.new_key(limits="budget=10/day")
    async with client(gateway, key) as calls:
        await calls.post("/api/chat", json=CHAT)
        async with asyncio.timeout(WITHIN_S):
            while (
                refused := await calls.post("/api/chat", json=CHAT)
            ).status_code == 200:
                pass
        lists = await calls.get("/api/tags")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "budget_exceeded"
    assert refused.headers["x-should-retry"] == "false"
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    assert lists.status_code == 200, "it uses no tokens"


async def test_whoever_asks_for_one_thing_after_another_needs_one_slot(
    gateway: Gateway[Standin],
) -> None:
    key = await gateway.new_key(limits="concurrency=1")
    async with client(gateway, key) as calls:
        for body in (CHAT, STREAM) * 10:
            answer = await calls.post("/api/chat", json=body)
            assert answer.status_code == 200


@pytest.mark.parametrize("slots", [4, 16, 40])
async def test_as_many_as_there_are_slots_may_ask_again_and_again(
    gateway: Gateway[Standin], slots: int
) -> None:
    """However late their ends are told of."""
    key = await gateway.new_key(limits=f"concurrency={slots}")
    async with client(gateway, key) as calls:
        for _ in range(5):
            answers = await asyncio.gather(
                *(calls.post("/api/chat", json=CHAT) for _ in range(slots))
            )
            assert {answer.status_code for answer in answers} == {200}


async def test_a_stream_holds_its_slot_until_its_client_leaves(
    gateway: Gateway[Standin],
) -> None:
    key = await gateway.new_key(limits="concurrency=1")
    await gateway.upstream.behave(chunks=1000, chunk_delay_s=0.05)
    async with client(gateway, key) as calls:
        async with calls.stream("POST", "/api/chat", json=STREAM) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            during = await calls.post("/api/chat", json=CHAT)
        await gateway.upstream.reset()
        async with asyncio.timeout(WITHIN_S):
            while (await calls.post("/api/chat", json=CHAT)).status_code != 200:
                pass
    assert during.status_code == 429


async def test_what_tokens_were_counted_replaces_the_estimate(
    gateway: Gateway[Standin],
) -> None:
    key = await gateway.new_key(limits="tpm=100000")
    async with client(gateway, key) as calls:
        first = await calls.post("/api/chat", json=CHAT)
        used = first.json()["prompt_eval_count"] + first.json()["eval_count"]
        async with asyncio.timeout(WITHIN_S):
            while True:
                answer = await calls.get("/api/version")
                if answer.headers["x-ratelimit-remaining-tokens"] == str(
                    100_000 - used
                ):
                    break


async def test_who_leaves_while_he_is_checked_holds_no_slot(
    gateway: Gateway[Standin],
) -> None:
    key = await gateway.new_key(limits="concurrency=1")
    body = b'{"model":"llama3.1"}'
    request = (
        b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (key.encode(), len(body), body)
    )
    gateway.authz.process.send_signal(signal.SIGSTOP)
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request)
        await writer.drain()
        writer.transport.abort()
    finally:
        gateway.authz.process.send_signal(signal.SIGCONT)
    async with client(gateway, key) as calls, asyncio.timeout(WITHIN_S):
        while (await calls.post("/api/chat", json=CHAT)).status_code != 200:
            pass


async def test_a_request_is_recorded_with_what_it_used(
    gateway: Gateway[Standin],
) -> None:
    key = await gateway.new_key()
    async with client(gateway, key) as calls:
        answer = (await calls.post("/api/chat", json=CHAT)).json()
    row = await recorded(gateway.database_url, key)
    assert row["model"] == "registry.ollama.ai/library/llama3.1:latest"
    assert (row["owner"], row["endpoint"]) == ("tests", "/api/chat")
    assert (row["requests"], row["failed"], row["estimated"]) == (1, 0, 0)
    counts = answer["prompt_eval_count"], answer["eval_count"]
    assert (row["input_tokens"], row["output_tokens"]) == counts


async def test_what_was_heard_is_recorded_when_the_service_ends(
    stores: Stores, tmp_path: Path
) -> None:
    """Usage is written every few seconds, and at the end, whatever the time."""
    async with own_gateway(stores, tmp_path) as gateway:
        key = await gateway.new_key(limits="concurrency=1")
        gateway.upstream.script = [
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            b"content-length: 50\r\n\r\n"
            b'{"done":true,"prompt_eval_count":5,"eval_count":7}'
        ]
        async with client(gateway, key) as calls:
            await calls.post("/api/chat", json=CHAT)
            # It has a slot again when the service has heard of the first one's end.
            assert (await calls.post("/api/chat", json=CHAT)).status_code == 200
    row = await recorded(stores.database_url, key)
    assert row["requests"] in {1, 2}
    assert row["input_tokens"] == 5 * row["requests"]
    assert row["output_tokens"] == 7 * row["requests"]


async def recorded(database_url: str, key: str) -> asyncpg.Record:
    """Wait for the usage of a key."""
    async with connected(database_url) as connection, asyncio.timeout(WITHIN_S):
        while True:
            row = await connection.fetchrow(
                "SELECT usage.* FROM usage JOIN secrets USING (key_id)"
                " WHERE secrets.prefix = $1",
                key[:11],
            )
            if row is not None:
                return row
            await asyncio.sleep(0.1)
