"""Pages of other origins: nothing is there for them until listener.yaml names them."""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import yaml

from authz.core.credential import mint
from tests.gateway import own_gateway
from tests.raw import http1, http2, read_answer
from tests.rows import (
    INVALID,
    METHOD,
    MODEL,
    UNAUTHORIZED,
    UNAVAILABLE,
    UPSTREAM,
    assert_row,
)
from tests.upstream import OK, Act, answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway import Gateway, Stores
    from tests.raw import Answer
    from tests.rows import Row
    from tests.upstream import RawUpstream, Step

    RawGateway = Gateway[RawUpstream]

PAGE = "https://chat.example.com"
STRANGERS = {
    "another host": "https://evil.example",
    "no origin of its own": "null",
    "a longer name": f"{PAGE}.evil.example",
    "another scheme": "http://chat.example.com",
    "another port": f"{PAGE}:8443",
    "two": f"{PAGE}\r\norigin: https://evil.example",
    "any": "*",
}
FOR_THE_PAGE = {
    "access-control-allow-origin": PAGE,
    "access-control-expose-headers": "*",
    "vary": "origin",
}
FOR_OTHERS = {"vary": "origin"}
PREFLIGHT = {
    "access-control-allow-methods": "GET, HEAD, POST",
    "access-control-allow-headers": "authorization, *",
    "access-control-max-age": "7200",
}
UNKNOWN = mint(b"never issued".ljust(32))
CHAT = '{"model":"llama3.1"}'
TIMEOUT_S = 20
# What a model server might say of pages by itself.
OPEN_TO_ALL = (
    b"HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\nvary: x\r\n"
    b"access-control-allow-credentials: true\r\naccess-control-expose-headers: x\r\n"
    b"timing-allow-origin: *\r\ncontent-length: 2\r\n\r\n{}",
)


def name_the_page(directory: Path) -> None:
    """Turn the switch; the origin is the example of the file."""
    file = directory / "listener.yaml"
    config = yaml.safe_load(file.read_text())
    manager = config["resources"][0]["filter_chains"][0]["filters"][-1]
    filters = manager["typed_config"]["http_filters"]
    (browsers,) = [part for part in filters if part["name"] == "browsers"]
    assert browsers["disabled"] is True
    browsers["disabled"] = False
    file.write_text(yaml.safe_dump(config, sort_keys=False))


@pytest.fixture(scope="module")
async def opened(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RawGateway]:
    logs = tmp_path_factory.mktemp("opened")
    async with own_gateway(stores, logs, name_the_page) as gateway:
        yield gateway


@pytest.fixture
def on(opened: RawGateway) -> RawGateway:
    opened.upstream.reset()
    return opened


def request(first: str, origin: str | None, *headers: str, body: str = "") -> bytes:
    lines = [f"{first} HTTP/1.1", "host: a", *headers]
    if origin:
        lines.append(f"origin: {origin}")
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", body]).encode()


def preflight(
    origin: str | None = PAGE, path: str = "/v1/chat/completions", method: str = "POST"
) -> bytes:
    wanted = "access-control-request-headers: authorization,content-type"
    asked = f"access-control-request-method: {method}"
    return request(f"OPTIONS {path}", origin, asked, wanted)


def chat(key: str, origin: str | None = PAGE) -> bytes:
    return request("POST /api/chat", origin, f"authorization: Bearer {key}", body=CHAT)


def without_cors(answered: Answer, expected: dict[str, str]) -> Answer:
    """Take off the headers for pages, which must be these and no others."""
    own = {"vary", "timing-allow-origin"}
    found: list[tuple[str, str]] = []
    rest: list[tuple[str, str]] = []
    for name, value in answered.headers:
        ours = name in own or name.startswith("access-control-")
        (found if ours else rest).append((name, value))
    assert sorted(found) == sorted(expected.items()), answered
    return replace(answered, headers=tuple(rest))


def assert_preflight(answered: Answer) -> None:
    left = without_cors(answered, FOR_THE_PAGE | PREFLIGHT)
    assert left.status == 204
    assert left.body == b""
    assert {name for name, _ in left.headers} == {"date", "x-request-id", "request-id"}
    assert left.header("x-request-id") == left.header("request-id")


# On: preflights ---------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/tags", "/unheard-of"])
async def test_a_preflight_of_a_named_origin_is_answered_without_a_key(
    on: RawGateway, path: str, method: str
) -> None:
    assert_preflight(await http1(on.port, preflight(path=path, method=method)))
    assert on.upstream.received == []


async def test_a_preflight_over_http2_is_answered_alike(on: RawGateway) -> None:
    pseudo = [(":method", "OPTIONS"), (":path", "/api/chat"), (":scheme", "http")]
    asked = [("origin", PAGE), ("access-control-request-method", "POST")]
    assert_preflight(await http2(on.port, [*pseudo, (":authority", "a"), *asked]))


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_preflight_of_another_origin_is_refused_as_without_a_key(
    on: RawGateway, stranger: str
) -> None:
    answered = await http1(on.port, preflight(STRANGERS[stranger]))
    assert_row(without_cors(answered, FOR_OTHERS), UNAUTHORIZED)


async def test_a_preflight_without_an_origin_is_none(on: RawGateway) -> None:
    answered = await http1(on.port, preflight(None))
    assert_row(without_cors(answered, FOR_OTHERS), UNAUTHORIZED)


@pytest.mark.parametrize(
    "sent",
    [
        request("OPTIONS /api/chat", PAGE),
        preflight().replace(b"OPTIONS", b"GET"),
        preflight().replace(b"OPTIONS", b"POST"),
    ],
)
async def test_nothing_but_a_preflight_passes_without_a_key(
    on: RawGateway, sent: bytes
) -> None:
    answered = await http1(on.port, sent)
    assert_row(without_cors(answered, FOR_THE_PAGE), UNAUTHORIZED)


async def test_each_preflight_of_a_connection_is_logged_under_its_own_id(
    on: RawGateway,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", on.port)
    ids = []
    for _ in range(2):
        writer.write(preflight())
        ids.append((await read_answer(reader)).header("x-request-id"))
    writer.close()
    assert len(set(ids)) == 2
    logged: dict[str, object] = {}
    async with asyncio.timeout(TIMEOUT_S):
        while not set(ids) <= set(logged):
            await asyncio.sleep(0.05)
            text = (on.logs / "envoy.log").read_text()
            lines = [json.loads(x) for x in text.splitlines() if x.startswith("{")]
            logged = {line["request_id"]: line["status"] for line in lines}
    assert [logged[str(each)] for each in ids] == [204, 204]


async def test_a_preflight_takes_no_odd_id_from_a_trusted_gateway(
    stores: Stores, tmp_path: Path
) -> None:
    def edit(directory: Path) -> None:
        name_the_page(directory)
        file = directory / "listener.yaml"
        text = file.read_text()
        ours = "preserve_external_request_id: false"
        assert text.count(ours) == 1
        file.write_text(text.replace(ours, "preserve_external_request_id: true"))

    async with own_gateway(stores, tmp_path, edit) as gateway:
        for sent, kept in ((b"from-the.front_1", True), (b'a"b', False)):
            with_id = preflight().replace(
                b"host: a", b"host: a\r\nx-request-id: " + sent
            )
            answered = await http1(gateway.port, with_id)
            assert_preflight(answered)
            assert (answered.header("x-request-id") == sent.decode()) is kept


# On: responses ----------------------------------------------------------


async def test_a_page_may_read_an_answer(on: RawGateway) -> None:
    answered = await http1(on.port, chat(await on.new_key()))
    left = without_cors(answered, FOR_THE_PAGE)
    assert (left.status, left.body) == (200, OK[0].partition(b"\r\n\r\n")[2])
    assert "origin" not in on.upstream.received[-1].headers


async def test_a_page_may_read_a_stream_while_it_runs(on: RawGateway) -> None:
    goes_on = asyncio.Event()
    head, *parts = stream("application/x-ndjson", [b'{"a":1}\n', b'{"a":2}\n'])
    on.upstream.script = (head, parts[0], goes_on, *parts[1:])
    reader, writer = await asyncio.open_connection("127.0.0.1", on.port)
    async with asyncio.timeout(TIMEOUT_S):
        writer.write(chat(await on.new_key()))
        begun = await reader.readuntil(b'{"a":1}\n')
        goes_on.set()
        await reader.readuntil(b'{"a":2}\n')
    writer.close()
    assert b"\r\naccess-control-allow-origin: %b\r\n" % PAGE.encode() in begun


# What the model server does (None: it is not asked), and what the page reads.
ERRORS: dict[str, tuple[tuple[Step, ...] | None, bytes, Row]] = {
    "no key": (None, request("GET /api/tags", PAGE), UNAUTHORIZED),
    "unknown key": (None, chat(UNKNOWN), UNAUTHORIZED),
    "model": (None, chat("KEY").replace(b"llama3.1", b"secret:1"), MODEL),
    "method": (None, chat("KEY").replace(b"POST", b"PUT", 1), METHOD),
    "its 400": (answer(400, '{"error":"no"}'), chat("KEY"), INVALID),
    "its 500": (answer(500, '{"error":"no"}'), chat("KEY"), UPSTREAM),
    "its 503": (answer(503), chat("KEY"), UNAVAILABLE),
    "it goes away": ((Act.RESET,), chat("KEY"), UPSTREAM),
}


@pytest.mark.parametrize("case", ERRORS)
async def test_a_page_may_read_every_error(on: RawGateway, case: str) -> None:
    script, sent, row = ERRORS[case]
    on.upstream.script = script or OK
    key = await on.new_key("llama3.1")
    answered = await http1(on.port, sent.replace(b"KEY", key.encode()))
    assert_row(without_cors(answered, FOR_THE_PAGE), row)
    assert bool(on.upstream.received) == bool(script)


async def test_while_authz_hangs_preflights_go_on_and_a_page_reads_the_503(
    on: RawGateway,
) -> None:
    on.authz.process.send_signal(signal.SIGSTOP)
    try:
        answered = await http1(on.port, preflight())
        refused = await http1(on.port, chat(UNKNOWN))
    finally:
        on.authz.process.send_signal(signal.SIGCONT)
    assert_preflight(answered)
    assert_row(without_cors(refused, FOR_THE_PAGE), UNAVAILABLE)


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_another_origin_gets_no_leave_to_read(
    on: RawGateway, stranger: str
) -> None:
    key = await on.new_key()
    answered = await http1(on.port, chat(key, STRANGERS[stranger]))
    assert without_cors(answered, FOR_OTHERS).status == 200


@pytest.mark.parametrize(
    ("origin", "expected"), [(PAGE, FOR_THE_PAGE), ("https://evil.example", FOR_OTHERS)]
)
async def test_what_the_model_server_says_of_origins_does_not_pass(
    on: RawGateway, origin: str, expected: dict[str, str]
) -> None:
    on.upstream.script = OPEN_TO_ALL
    answered = await http1(on.port, chat(await on.new_key(), origin))
    assert without_cors(answered, expected).status == 200


# Off --------------------------------------------------------------------


async def test_by_default_a_preflight_is_refused(raw: RawGateway) -> None:
    assert_row(await http1(raw.port, preflight()), UNAUTHORIZED)


@pytest.mark.parametrize("script", [OK, OPEN_TO_ALL, answer(500)])
async def test_by_default_no_response_has_a_word_for_pages(
    raw: RawGateway, script: tuple[bytes, ...]
) -> None:
    raw.upstream.script = script
    without_cors(await http1(raw.port, chat(await raw.new_key())), {})
    without_cors(await http1(raw.port, chat(UNKNOWN)), {})
