"""Every row of the error table through the real Envoy, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from authz.core.credential import mint
from tests import rows
from tests.raw import Http2, http1, http2
from tests.rows import Row, assert_row
from tests.upstream import Act, answer

if TYPE_CHECKING:
    from tests.gateway import Gateway
    from tests.raw import Answer
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]

CHAT = b'{"model":"llama3.1","stream":false}'
UNKNOWN = mint(b"never issued".ljust(32))
GRPC = ("content-type", "application/grpc")
THEIR_ID = ("x-request-id", "chosen-by-the-client")
LEAK = '{"error":"open /root/.ollama/models: postgres traceback at 127.0.0.1"}'


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that both protocols can carry; KEY stands for a good key."""

    method: str = "POST"
    path: str = "/api/chat"
    headers: tuple[tuple[str, str], ...] = (("authorization", "Bearer KEY"),)
    body: bytes = CHAT

    def plus(self, *headers: tuple[str, str]) -> Ask:
        return Ask(self.method, self.path, (*self.headers, *headers), self.body)

    async def over(self, protocol: str, port: int, key: str) -> Answer:
        lines = [(name, value.replace("KEY", key)) for name, value in self.headers]
        if self.body:
            lines.append(("content-length", str(len(self.body))))
        if protocol == "HTTP/1.1":
            text = "".join(f"{name}: {value}\r\n" for name, value in lines)
            first = f"{self.method} {self.path} HTTP/1.1\r\nhost: gateway\r\n"
            raw = f"{first}{text}\r\n".encode("latin-1") + self.body
            return await http1(port, raw, head=self.method == "HEAD")
        pseudo = [(":method", self.method), (":path", self.path)]
        pseudo += [(":scheme", "http"), (":authority", "gateway")]
        return await http2(port, [*pseudo, *lines], self.body)


GOOD = Ask()
STRANGER = Ask(headers=())
WITH_UNKNOWN = Ask(headers=(("authorization", f"Bearer {UNKNOWN}"),))
LIMITED = Ask(headers=(("authorization", "Bearer KEY"),), body=b'{"model":"other"}')

DENIED: dict[str, tuple[Ask, Row]] = {
    "no key": (STRANGER, rows.UNAUTHORIZED),
    "no key, own id": (STRANGER.plus(THEIR_ID), rows.UNAUTHORIZED),
    "not bearer": (
        Ask(headers=(("authorization", "NotBearer foo"),)),
        rows.UNAUTHORIZED,
    ),
    "unknown key": (WITH_UNKNOWN, rows.UNAUTHORIZED),
    "unknown key, own id": (WITH_UNKNOWN.plus(THEIR_ID), rows.UNAUTHORIZED),
    "two keys": (GOOD.plus(("x-api-key", UNKNOWN)), rows.UNAUTHORIZED),
    "no key, head": (Ask("HEAD", headers=(), body=b""), rows.UNAUTHORIZED),
    "no key, grpc": (STRANGER.plus(GRPC), rows.UNAUTHORIZED),
    "unknown key, grpc": (WITH_UNKNOWN.plus(GRPC), rows.UNAUTHORIZED),
    "%2F": (Ask(path="/api%2Fchat"), rows.INVALID),
    "%5C, no key": (Ask(path="/api%5Cchat", headers=()), rows.INVALID),
    "%00": (Ask(path="/api/chat%00"), rows.INVALID),
    "%2F, own id": (Ask(path="/a%2Fb").plus(THEIR_ID), rows.INVALID),
    "% left": (Ask(path="/api/ch%3Aat"), rows.INVALID),
    "no such path": (Ask(path="/nowhere"), rows.NOT_FOUND),
    "no such path, get": (Ask("GET", path="/nowhere", body=b""), rows.NOT_FOUND),
    "no such path, head": (Ask("HEAD", path="/nowhere", body=b""), rows.NOT_FOUND),
    "no such path, grpc": (Ask(path="/nowhere").plus(GRPC), rows.NOT_FOUND),
    "get": (Ask("GET", body=b""), rows.METHOD),
    "head": (Ask("HEAD", body=b""), rows.METHOD),
    "options": (Ask("OPTIONS", body=b""), rows.METHOD),
    "delete, grpc": (Ask("DELETE").plus(GRPC), rows.METHOD),
    "manage": (Ask(path="/api/pull"), rows.ENDPOINT),
    "manage, head": (
        Ask("HEAD", path=f"/api/blobs/sha256:{'0' * 64}", body=b""),
        rows.ENDPOINT,
    ),
    "encoded": (GOOD.plus(("content-encoding", "zstd")), rows.ENCODING),
    "multipart": (
        GOOD.plus(("content-type", "multipart/form-data; boundary=x")),
        rows.ENCODING,
    ),
    "no body": (Ask(body=b""), rows.INVALID),
    "no json": (Ask(body=b"{"), rows.INVALID),
    "no json, grpc": (Ask(body=b"{").plus(GRPC), rows.INVALID),
    "model": (LIMITED, rows.MODEL),
    "model, grpc": (LIMITED.plus(GRPC), rows.MODEL),
    "cloud": (Ask(body=b'{"model":"llama3.1:cloud"}'), rows.MODEL),
    "parameter": (
        Ask(body=b'{"model":"llama3.1","options":{"num_gpu":99}}'),
        rows.PARAMETER,
    ),
    "parameter, grpc": (
        Ask(body=b'{"model":"llama3.1","keep_alive":1e-10}').plus(GRPC),
        rows.PARAMETER,
    ),
    "no parameter": (Ask(body=b'{"model":"llama3.1","options":1}'), rows.INVALID),
}


@pytest.fixture(params=["HTTP/1.1", "HTTP/2"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
async def key(shared_raw_gateway: RawGateway) -> str:
    return await shared_raw_gateway.new_key("llama3.1")


@pytest.mark.parametrize("case", DENIED)
async def test_what_we_refuse_has_its_row_and_goes_no_further(
    raw: RawGateway, key: str, protocol: str, case: str
) -> None:
    ask, row = DENIED[case]
    answered = await ask.over(protocol, raw.port, key)
    assert_row(answered, row, head=ask.method == "HEAD")
    assert raw.upstream.received == []


async def test_a_head_of_a_grpc_request_is_refused_without_a_body(
    raw: RawGateway, protocol: str
) -> None:
    """Envoy hides the status of such a reply from its filters, so 400 stands in."""
    ask = Ask("HEAD", headers=(GRPC,), body=b"")
    answered = await ask.over(protocol, raw.port, "")
    assert (answered.status, answered.body) == (400, b"")
    assert answered.header("x-request-id") == answered.header("request-id")


UPSTREAM: dict[str, tuple[int, str, Row]] = {
    "302": (302, LEAK, rows.UPSTREAM),
    "400": (400, LEAK, rows.INVALID),
    "400 tools": (
        400,
        '{"error":"\\"m\\" does not support tools"}',
        rows.no_feature("tools"),
    ),
    "400 thinking": (
        400,
        '{"error":"\\"m\\" does not support thinking"}',
        rows.no_feature("thinking"),
    ),
    "400 images": (
        400,
        '{"error":{"message":"this model does not support image input","type":"x"}}',
        rows.no_feature("images"),
    ),
    "400 embeddings": (
        400,
        '{"error":"this model does not support embeddings"}',
        rows.no_feature("embeddings"),
    ),
    "400 generation": (
        400,
        '{"error":"\\"m\\" does not support generate"}',
        rows.no_feature("generation"),
    ),
    "400 other feature": (
        400,
        '{"error":"raw mode does not support template"}',
        rows.INVALID,
    ),
    "400 context": (
        400,
        '{"error":"the input length exceeds the context length"}',
        rows.TOO_LONG,
    ),
    "400 context size": (
        400,
        '{"error":"request (9 tokens) exceeds the available context size (8 tokens)"}',
        rows.TOO_LONG,
    ),
    "404": (404, '{"error":"model \\"secret\\" not found"}', rows.NO_MODEL),
    "503": (503, LEAK, rows.UNAVAILABLE),
    **{
        str(status): (status, LEAK, rows.UPSTREAM)
        for status in (401, 403, 405, 409, 413, 415, 422, 429, 499, 500, 501, 502, 504)
    },
}


@pytest.mark.parametrize("grpc", [False, True])
@pytest.mark.parametrize("case", UPSTREAM)
async def test_an_error_of_the_model_server_has_our_row(
    raw: RawGateway, key: str, protocol: str, case: str, grpc: bool
) -> None:
    status, body, row = UPSTREAM[case]
    raw.upstream.script = answer(status, body)
    ask = GOOD.plus(GRPC) if grpc else GOOD
    assert_row(await ask.over(protocol, raw.port, key), row)


BROKEN = {
    "closed": (Act.CLOSE,),
    "reset": (Act.RESET,),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-le", Act.RESET),
    "garbage": (b"garbage\r\n\r\n", Act.CLOSE),
    "http/1.0": (f"HTTP/1.0 500 X\r\n\r\n{LEAK}".encode(), Act.CLOSE),
    "an answer that is encoded": (
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nzzz",
    ),
    "an error without end": (
        b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n",
        *[b"4000\r\n" + b"x" * 0x4000 + b"\r\n"] * 100,
        b"0\r\n\r\n",
    ),
    "an error cut off": (
        b"HTTP/1.1 500 X\r\ncontent-length: 1000\r\n\r\n/root/.ollama",
        Act.RESET,
    ),
}


@pytest.mark.parametrize("grpc", [False, True])
@pytest.mark.parametrize("case", BROKEN)
async def test_a_model_server_that_breaks_is_a_502(
    raw: RawGateway, key: str, protocol: str, case: str, grpc: bool
) -> None:
    raw.upstream.script = BROKEN[case]
    ask = GOOD.plus(GRPC) if grpc else GOOD
    assert_row(await ask.over(protocol, raw.port, key), rows.UPSTREAM)


async def test_an_error_is_answered_before_the_model_server_has_told_it_all(
    raw: RawGateway, key: str
) -> None:
    go_on = asyncio.Event()
    head = b"HTTP/1.1 500 X\r\ncontent-length: 1000\r\n\r\n"
    raw.upstream.script = (head + b"/root", go_on, b"x" * 995)
    answered = await GOOD.over("HTTP/1.1", raw.port, key)
    go_on.set()
    assert_row(answered, rows.UPSTREAM)


async def test_a_400_that_repeats_a_client_costs_linear_time(
    raw: RawGateway, key: str
) -> None:
    """Twenty take minutes if a pattern goes back over the text for every word."""
    raw.upstream.script = answer(400, json.dumps({"error": "exceeds" * 4_400}))
    async with asyncio.timeout(5):
        for _ in range(20):
            assert_row(await GOOD.over("HTTP/1.1", raw.port, key), rows.INVALID)


async def test_a_body_that_is_too_large_has_its_row(raw: RawGateway, key: str) -> None:
    ask = Ask(body=b" " * (16 * 1024 * 1024 + 1))
    assert_row(await ask.over("HTTP/1.1", raw.port, key), rows.TOO_LARGE)
    headers = [(":method", "POST"), (":path", "/api/chat"), (":scheme", "http")]
    headers += [(":authority", "a"), ("authorization", f"Bearer {key}")]
    async with Http2(raw.port) as client:
        size = len(ask.body)
        assert await client.flood(headers, size, 1, lambda: None) == {"413"}


async def test_nothing_of_the_model_server_but_the_answer_is_passed_on(
    raw: RawGateway, key: str, protocol: str
) -> None:
    raw.upstream.script = answer(200, '{"ok":true}')
    answered = await GOOD.over(protocol, raw.port, key)
    names = {name for name, _ in answered.headers}
    ours = {"x-request-id", "request-id", "date"}
    assert names == {"content-type", "content-length"} | ours
    assert answered.body == b'{"ok":true}'


def http1_cases() -> dict[str, tuple[bytes, Row]]:
    start = b"POST /api/chat HTTP/1.1\r\nhost: a\r\n"
    return {
        "garbage": (b"GARBAGE\r\n\r\n", rows.INVALID),
        "no host": (b"POST /api/chat HTTP/1.1\r\n\r\n", rows.INVALID),
        "both lengths": (
            start + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            rows.INVALID,
        ),
        "two lengths": (
            start + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
            rows.INVALID,
        ),
        "nul in a header": (start + b"x: a\0b\r\n\r\n", rows.INVALID),
        "underscore": (start + b"x_api_key: a\r\n\r\n", rows.INVALID),
        "unknown method": (b"BREW / HTTP/1.1\r\nhost: a\r\n\r\n", rows.INVALID),
        "no slash": (b"POST api/chat HTTP/1.1\r\nhost: a\r\n\r\n", rows.INVALID),
        "fragment": (b"GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", rows.INVALID),
        "options *": (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", rows.INVALID),
        "connect": (b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", rows.INVALID),
        "websocket": (
            b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n"
            b"connection: upgrade\r\n\r\n",
            rows.INVALID,
        ),
        "websocket, grpc, own id": (
            b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n"
            b"connection: upgrade\r\ncontent-type: application/grpc\r\n"
            b"x-request-id: mine\r\n\r\n",
            rows.INVALID,
        ),
        "no host, own id": (
            b"POST /api/chat HTTP/1.1\r\nx-request-id: mine\r\n\r\n",
            rows.INVALID,
        ),
        "http/1.0": (b"GET /healthz HTTP/1.0\r\nhost: a\r\n\r\n", rows.UPGRADE),
        "http/0.9": (b"GET /healthz\r\n\r\n", rows.UPGRADE),
        "large header": (start + b"x: " + b"a" * 20_000 + b"\r\n\r\n", rows.HEADERS),
        "many headers": (start + b"x: a\r\n" * 120 + b"\r\n", rows.HEADERS),
    }


@pytest.mark.parametrize("case", http1_cases())
async def test_broken_http_has_its_row(raw: RawGateway, case: str) -> None:
    request, row = http1_cases()[case]
    assert_row(await http1(raw.port, request), row)
    assert raw.upstream.received == []


@pytest.mark.parametrize(
    "header",
    [("x_api_key", "a"), ("x", "a" * 20_000), ("x", "a\0b")],
    ids=["underscore", "large", "nul"],
)
async def test_http2_resets_a_stream_whose_headers_it_cannot_take(
    raw: RawGateway, key: str, header: tuple[str, str]
) -> None:
    answered = await GOOD.plus(header).over("HTTP/2", raw.port, key)
    assert answered.status == 0
    assert raw.upstream.received == []


async def test_health_is_open_and_nothing_near_it_is(
    raw: RawGateway, key: str, protocol: str
) -> None:
    for path in ("/healthz", "/healthz?a=b", "/%68ealthz"):
        answered = await Ask("GET", path, (), b"").over(protocol, raw.port, key)
        assert (answered.status, answered.body) == (200, b'{"status":"ok"}')
        assert answered.header("content-type") == "application/json"
        assert answered.header("x-request-id") == answered.header("request-id")
    head = await Ask("HEAD", "/healthz", (), b"").over(protocol, raw.port, key)
    assert (head.status, head.body) == (200, b"")
    for method, path in (("POST", "/healthz"), ("GET", "/healthz/")):
        answered = await Ask(method, path, (), b"").over(protocol, raw.port, key)
        assert_row(answered, rows.UNAUTHORIZED)
