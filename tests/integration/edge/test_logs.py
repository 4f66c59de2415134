"""One id: what the client got, Envoy's access log and authz's line say the same."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.core.credential import mint
from authz.core.model import Code
from authz.local.envoy import config_sources
from tests.raw import http1
from tests.upstream import answer, stream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway import Gateway
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]

UNKNOWN = mint(b"never issued".ljust(32))
WRITTEN_WITHIN_S = 20


def post(path: str, *headers: str, body: str = "") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: a", *headers]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", body]).encode()


async def line_of(log: Path, request_id: str) -> dict[str, Any]:
    """Find the line of a request; Envoy writes its log once a second."""
    async with asyncio.timeout(WRITTEN_WITHIN_S):
        while True:
            for line in log.read_text().splitlines():
                if request_id in line and line.startswith("{"):
                    return dict(json.loads(line))
            await asyncio.sleep(0.05)


EARLY = {
    "garbage": b"GARBAGE\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nx-request-id: mine\r\n\r\n",
    "%2F": b"GET /a%2Fb HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\n\r\n",
    "websocket": b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n"
    b"connection: upgrade\r\n\r\n",
    "no key": b"GET /api/tags HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\n\r\n",
    "health": b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
}


@pytest.mark.parametrize("case", EARLY)
async def test_also_what_never_reached_authz_is_logged_with_its_id(
    raw: RawGateway, case: str
) -> None:
    answered = await http1(raw.port, EARLY[case])
    request_id = answered.header("x-request-id")
    assert request_id
    line = await line_of(raw.logs / "envoy.log", request_id)
    assert line["request_id"] == request_id
    assert line["status"] == answered.status


async def test_a_denial_has_its_reason_in_both_logs(raw: RawGateway) -> None:
    request = post(
        "/api/chat", f"authorization: Bearer {UNKNOWN}", "x-request-id: mine"
    )
    answered = await http1(raw.port, request)
    request_id = answered.header("x-request-id") or ""
    access = await line_of(raw.logs / "envoy.log", request_id)
    ours = await line_of(raw.logs / "authz.log", request_id)
    assert access["request_id"] == ours["request_id"] == request_id
    assert access["reason"] == ours["reason"] == "key_unknown"
    assert ours["key_prefix"] == UNKNOWN[:11]
    assert ours["endpoint"] == "/api/chat"


async def test_a_denial_says_whose_request_it_was_and_for_which_model(
    raw: RawGateway,
) -> None:
    key = await raw.new_key("llama3.1")
    body = '{"model":"Qwen3","prompt":"said in confidence"}'
    request = post("/api/generate", f"x-api-key: {key}", body=body)
    answered = await http1(raw.port, request)
    ours = await line_of(raw.logs / "authz.log", answered.header("x-request-id") or "")
    assert (ours["reason"], ours["endpoint"]) == ("model_not_listed", "/api/generate")
    assert ours["model"] == "registry.ollama.ai/library/qwen3:latest"
    async with connected(raw.database_url) as connection:
        prefix = (await PostgresKeyWriter(connection).show(ours["key_id"])).prefix
    assert key.startswith(prefix)
    assert "said in confidence" not in (raw.logs / "authz.log").read_text()


async def test_an_allowed_request_is_logged_with_its_key_and_model(
    raw: RawGateway,
) -> None:
    key = await raw.new_key("llama3.1")
    raw.upstream.script = answer(500, "/root/secret")
    body = '{"model":"Llama3.1"}'
    request = post("/api/chat?q=secret", f"x-api-key: {key}", body=body)
    answered = await http1(raw.port, request)
    access = await line_of(
        raw.logs / "envoy.log", answered.header("x-request-id") or ""
    )
    assert access["endpoint"] == access["path"] == "/api/chat"
    assert access["model"] == "registry.ollama.ai/library/llama3.1:latest"
    assert access["owner"] == "tests"
    assert access["key_id"]
    assert access["status"] == answered.status == 502


async def test_an_answer_is_logged_with_its_tokens(raw: RawGateway) -> None:
    key = await raw.new_key("llama3.1")
    last = b'{"done":true,"prompt_eval_count":7,"eval_count":9}\n'
    raw.upstream.script = stream("application/x-ndjson", [b"{}\n", last])
    request = post("/api/chat", f"x-api-key: {key}", body='{"model":"llama3.1"}')
    answered = await http1(raw.port, request)
    access = await line_of(
        raw.logs / "envoy.log", answered.header("x-request-id") or ""
    )
    assert (access["input_tokens"], access["output_tokens"]) == (7, 9)
    assert access["chunks"] == 2


async def test_no_log_holds_a_credential_or_a_query(raw: RawGateway) -> None:
    key = await raw.new_key("llama3.1")
    asked = [
        post("/api/chat?token=in-the-query", f"authorization: Bearer {key}"),
        post("/api/chat", f"authorization: Bearer {UNKNOWN}", f"x-api-key: {key}"),
        post("/nowhere", f"x-api-key: {key}"),
    ]
    answers = [await http1(raw.port, request) for request in asked]
    for answered in answers:
        request_id = answered.header("x-request-id") or ""
        await line_of(raw.logs / "envoy.log", request_id)
    for log in raw.logs.iterdir():
        text = log.read_text()
        assert key not in text
        assert UNKNOWN not in text
        assert "in-the-query" not in text


def test_gateway_lua_knows_the_status_of_every_code() -> None:
    """It turns gRPC's 200 back into the status of the body's code."""
    script = (config_sources() / "gateway.lua").read_text()
    for code in Code:
        assert f'{code.code} = "{code.status}"' in script
