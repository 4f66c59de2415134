"""The model server gets the headers that it needs, and nothing else of a client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.corpus.judge import fields
from tests.gateway import own_gateway
from tests.raw import http1, http2
from tests.rows import Row, assert_row
from tests.upstream import answer, chunk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.gateway import Gateway, Stores
    from tests.raw import Answer
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]
    Send = Callable[[int, str, str, dict[str, str], bytes], Awaitable[Answer]]

WANTED = {
    "accept": "application/x-ndjson",
    "content-type": "application/json",
    "user-agent": "client/1.0",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=1",
}
# Identity, sessions, other readings of the request, what clients and proxies add.
UNWANTED = (
    *("cookie", "proxy-authorization", "x-auth-token", "x-session-id", "x-csrf-token"),
    *("x-amz-security-token", "cf-access-jwt-assertion", "x-goog-api-key", "api-key"),
    *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-path"),
    *("x-forwarded-prefix", "x-forwarded-proto", "x-forwarded-user", "x-real-ip"),
    *("x-host", "x-http-method", "x-method-override", "x-original-url", "via"),
    *("origin", "referer", "accept-encoding", "accept-language", "range", "from"),
    *("if-none-match", "if-modified-since", "cache-control", "trailer", "baggage"),
    *("anthropic-version", "anthropic-beta", "openai-organization", "openai-project"),
    *("x-stainless-lang", "x-stainless-retry-count", "idempotency-key", "request-id"),
    *("x-envoy-original-host", "x-envoy-original-path", "x-envoy-attempt-count"),
    *("x-envoy-auth-partial-body", "x-envoy-expected-rq-timeout-ms", "b3", "x"),
)
HOST = "gateway.internal.example"
INTERNAL = Row(500, "internal_error", "The request could not be processed.")
LIST = b'{"models":[]}'
CHAT = b'{"model":"llama3.1"}'

# Method, path, body, and whether the length is told: one for each kind of route.
ROUTES = {
    "short": ("POST", "/api/chat", CHAT, True),
    "of unknown length": ("POST", "/v1/messages", CHAT, False),
    "list": ("GET", "/api/tags", b"", True),
    "head of a list": ("HEAD", "/api/tags", b"", True),
    "without body": ("GET", "/api/version", b"", True),
    "head": ("HEAD", "/", b"", True),
}


async def over_http1(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes
) -> Answer:
    if body and "content-length" not in headers:
        headers = headers | {"transfer-encoding": "chunked"}
        body = chunk(body) + b"0\r\n\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\n{lines}\r\n"
    return await http1(port, head.encode() + body, head=method == "HEAD")


async def over_http2(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes
) -> Answer:
    pseudo = [(":method", method), (":path", path), (":scheme", "http")]
    return await http2(port, [*pseudo, (":authority", HOST), *headers.items()], body)


@pytest.mark.parametrize("credential", ["authorization", "x-api-key"])
@pytest.mark.parametrize("send", [over_http1, over_http2])
@pytest.mark.parametrize("route", ROUTES)
async def test_only_the_headers_on_the_list_travel(
    raw: RawGateway, route: str, send: Send, credential: str
) -> None:
    key = await raw.new_key()
    method, path, body, told = ROUTES[route]
    (whole,) = answer(200, LIST)
    raw.upstream.script = (whole.removesuffix(LIST) if method == "HEAD" else whole,)
    headers = dict.fromkeys(UNWANTED, f"1; {key}") | WANTED | {"te": "trailers"}
    headers[credential] = key if credential == "x-api-key" else f"Bearer {key}"
    length = {"content-length": str(len(body))} if body and told else {}
    answered = await send(raw.port, method, path, headers | length, body)
    assert answered.status == 200
    (received,) = raw.upstream.received
    chunked = {"transfer-encoding": "chunked"} if body and not told else {}
    id_ = {"x-request-id": answered.header("x-request-id")}
    sent = WANTED | {"host": "localhost"} | id_ | length | chunked
    assert sorted(fields(received)) == sorted(sent.items())


async def test_a_script_that_fails_lets_no_request_travel(
    stores: Stores, tmp_path: Path
) -> None:
    def break_script(directory: Path) -> None:
        file = directory / "listener.yaml"
        text = file.read_text()
        assert text.count("forwarded[name]") == 1
        file.write_text(text.replace("forwarded[name]", "nothing[name]"))

    async with own_gateway(stores, tmp_path, break_script) as gateway:
        key = await gateway.new_key()
        headers = {"x-api-key": key, "content-length": str(len(CHAT))}
        for send in (over_http1, over_http2):
            answered = await send(gateway.port, "POST", "/api/chat", headers, CHAT)
            assert_row(answered, INTERNAL)
        assert gateway.upstream.received == []
