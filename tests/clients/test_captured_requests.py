"""What other programs send passes as it is, or is refused as they can bear it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.raw import http1

if TYPE_CHECKING:
    from tests.gateway import Gateway, Standin

REQUESTS = yaml.safe_load(Path(__file__).with_name("requests.yaml").read_bytes())
BIG = "All work. " * 7_000


def body_of(request: dict[str, Any]) -> bytes:
    return str(request.get("body", "")).replace("BIG", BIG).encode()


def written(request: dict[str, Any], key: str) -> bytes:
    """Write a request to the byte."""
    body = body_of(request)
    headers = {"host": "gateway", **request.get("headers", {})}
    if request.get("authorization") != "none":
        headers["authorization"] = f"Bearer {key}"
    if body:
        headers |= {"content-type": "application/json", "content-length": len(body)}
    lines = [f"{request.get('method', 'POST')} {request['path']} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    "request_", REQUESTS, ids=lambda r: f"{r['client']} {r['path']}"
)
async def test_a_request_arrives_as_its_program_sent_it(
    gateway: Gateway[Standin], request_: dict[str, Any]
) -> None:
    key = await gateway.new_key("llama3.1,nomic-embed-text")
    head = request_.get("method") == "HEAD"
    answer = await http1(gateway.port, written(request_, key), head=head)
    assert answer.status == request_.get("status", 200), answer
    received = await gateway.upstream.received()
    assert len(received) == (answer.status == 200)
    for record in received:
        assert record["path"] == request_["path"].partition("?")[0]
        assert base64.b64decode(record["body"]) == body_of(request_)
        assert key not in str(record["headers"])


async def test_codex_may_declare_a_search_tool(gateway: Gateway[Standin]) -> None:
    """It does so unless it is told not to; the default parameters let it."""
    (turn,) = (r for r in REQUESTS if r["path"] == "/v1/responses")
    search = '"tools":[{"type":"web_search","external_web_access":false},'
    body = turn["body"].replace('"tools":[', search, 1)
    key = await gateway.new_key("llama3.1")
    answer = await http1(gateway.port, written(turn | {"body": body}, key))
    assert answer.status == 200
