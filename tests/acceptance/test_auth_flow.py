"""The authorization flow as a client sees it, through the real Envoy."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from authz.core.credential import mint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.gateway import Gateway, Standin

CHAT = {
    "model": "llama3.1",
    "stream": False,
    "messages": [{"role": "user", "content": "Hello"}],
}
FORBIDDEN = re.compile(
    rb"ollama|postgres|redis|envoy|traceback|asyncpg|sqlalchemy|grpc|localhost|127\.0",
    re.IGNORECASE,
)


@pytest.fixture
async def client(gateway: Gateway[Standin]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        yield client


def assert_error(answer: httpx.Response, status: int, code: str) -> None:
    """The one body of every error, its id in both headers, and no more."""
    assert answer.status_code == status, answer.text
    request_id = answer.headers["x-request-id"]
    assert answer.headers["request-id"] == request_id
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert answer.json() == {"error": error}
    assert error == {
        "code": code,
        "message": error["message"],
        "request_id": request_id,
    }
    assert not FORBIDDEN.search(answer.content)
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("x-envoy")]


def bearer(key: str) -> Mapping[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "NotBearer foo"},
        bearer("nz_doesnotexistxxxxxxxxxxxxxxxxxxxxxxxxxx"),
        bearer(mint(b"never issued".ljust(32))),
        {"x-api-key": mint(b"never issued".ljust(32))},
        {"authorization": "Basic Zm9vOmJhcg=="},
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/tags", "/x"])
async def test_without_a_valid_key_every_path_is_the_same_401(
    client: httpx.AsyncClient,
    gateway: Gateway[Standin],
    headers: dict[str, str],
    path: str,
) -> None:
    answer = await client.post(path, json=CHAT, headers=headers)
    assert_error(answer, 401, "unauthorized")
    assert answer.json()["error"]["message"] == "A valid API key is required."
    assert answer.headers["www-authenticate"] == 'Bearer realm="api"'
    assert answer.headers["x-should-retry"] == "false"
    assert await gateway.upstream.received() == []


async def test_a_valid_key_gets_the_answer_of_an_allowed_model(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    key = await gateway.new_key("llama3.1")
    answer = await client.post("/api/chat", json=CHAT, headers=bearer(key))
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == answer.headers["request-id"]
    assert answer.json()["model"] == "llama3.1"
    assert answer.json()["message"]["content"]


async def test_the_model_server_sees_the_request_and_no_credential(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    key = await gateway.new_key("llama3.1")
    both = {"authorization": f"Bearer {key}", "x-api-key": key, "cookie": "a=b"}
    await client.post("/api/chat?beta=true", json=CHAT, headers=both)
    (received,) = await gateway.upstream.received()
    assert received["path"] == "/api/chat"
    assert received["size"] == len(json.dumps(CHAT, separators=(",", ":")))
    names = {name.lower() for name, _ in received["headers"]}
    assert not names & {"authorization", "x-api-key", "cookie", "origin"}
    assert key not in json.dumps(received)


async def test_another_model_is_refused_whether_it_exists_or_not(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    key = await gateway.new_key("llama3.1")
    for model in ("qwen3:8b", "no-such-model", "llama3.1:cloud"):
        answer = await client.post(
            "/api/chat", json=CHAT | {"model": model}, headers=bearer(key)
        )
        assert_error(answer, 403, "model_not_allowed")
    assert await gateway.upstream.received() == []


async def test_an_allowed_model_that_is_not_installed_is_not_found(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    key = await gateway.new_key()
    answer = await client.post(
        "/api/chat", json=CHAT | {"model": "no-such-model"}, headers=bearer(key)
    )
    assert_error(answer, 404, "model_not_found")


async def test_a_stream_flows_as_it_is_made(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    key = await gateway.new_key()
    body = CHAT | {"stream": True}
    async with client.stream(
        "POST", "/api/chat", json=body, headers=bearer(key)
    ) as answer:
        lines = [json.loads(line) async for line in answer.aiter_lines()]
    assert len(lines) > 2
    assert lines[-1]["done"] is True
    assert lines[-1]["eval_count"] > 0


async def test_health_is_open(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["x-request-id"]


async def test_a_revoked_key_is_refused_at_once(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    key = await gateway.new_key()
    assert (
        await client.post("/api/chat", json=CHAT, headers=bearer(key))
    ).status_code == 200
    await gateway.revoke(key)
    async for status in until_refused(client, key):
        assert status == 200
    answer = await client.post("/api/chat", json=CHAT, headers=bearer(key))
    assert_error(answer, 401, "unauthorized")


async def until_refused(client: httpx.AsyncClient, key: str) -> AsyncIterator[int]:
    """A notification takes milliseconds; a thousand requests take far longer."""
    for _ in range(1000):
        answer = await client.post("/api/chat", json=CHAT, headers=bearer(key))
        if answer.status_code == 401:
            return
        yield answer.status_code
    pytest.fail("the key is still accepted")


async def test_the_order_of_decisions(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    """Each row fails also in all that comes after it; the first failure answers."""
    key = bearer(await gateway.new_key("llama3.1", scopes=["inference"]))
    odd = {"content-encoding": "gzip"}
    rows: list[tuple[str, str, dict[str, str], bytes, int, str]] = [
        ("PUT", "/nowhere", odd, b"{", 404, "not_found"),
        ("PUT", "/api/show", odd, b"{", 405, "method_not_allowed"),
        ("POST", "/api/show", odd, b"{", 403, "endpoint_not_allowed"),
        ("POST", "/api/pull", odd, b"{", 403, "endpoint_not_allowed"),
        ("POST", "/api/chat", odd, b"{", 415, "unsupported_encoding"),
        ("POST", "/api/chat", {}, b"{", 400, "invalid_request"),
        ("POST", "/api/chat", {}, b'{"model":"x"}', 403, "model_not_allowed"),
    ]
    for method, path, extra, body, status, code in rows:
        answer = await client.request(
            method, path, headers={**key, **extra}, content=body
        )
        assert_error(answer, status, code)
    assert await gateway.upstream.received() == []


async def test_a_wrong_method_is_told_the_right_ones(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    key = await gateway.new_key()
    answer = await client.get("/api/chat", headers=bearer(key))
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
