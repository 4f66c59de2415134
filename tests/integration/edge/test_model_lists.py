"""Model lists show what the key may use, and nothing tells that there is more."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from authz.core.lists import LISTS
from tests import rows
from tests.gateway import own_gateway
from tests.raw import http1
from tests.rows import assert_row
from tests.upstream import Act, answer, stream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway import Gateway, Stores
    from tests.raw import Answer
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]

NAMES = ("llama3.1:latest", "secret-a", "hf.co/team/LLAMA:q4", "secret-b")
MIB = 1024 * 1024


def native(*names: str) -> dict[str, object]:
    entries = [{"name": n, "model": n, "size": 4 << 30, "digest": "世"} for n in names]
    return {"models": entries}


def openai(*names: str) -> dict[str, object]:
    entries = [{"id": name, "object": "model", "created": 1} for name in names]
    return {"object": "list", "data": entries}


def compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


ENTRY = {"id": "llama3.1:latest", "object": "model"}
ANSWERS = {
    "/api/tags": (native(*NAMES), native("llama3.1:latest")),
    "/api/ps": (native(*NAMES), native("llama3.1:latest")),
    "/v1/models": (openai(*NAMES), openai("llama3.1:latest")),
    "/v1/models/:model": (ENTRY, ENTRY),
}


async def ask(
    raw: RawGateway, credential: str, path: str = "/api/tags", method: str = "GET"
) -> Answer:
    path = path.replace(":model", "llama3.1")
    request = f"{method} {path} HTTP/1.1\r\nhost: a\r\n{credential}\r\n\r\n"
    return await http1(raw.port, request.encode(), head=method == "HEAD")


@pytest.fixture(scope="session")
async def key(shared_raw_gateway: RawGateway) -> str:
    return await shared_raw_gateway.new_key("llama3.1")


@pytest.fixture
def bearer(key: str) -> str:
    return f"authorization: Bearer {key}"


def test_every_list_is_tested() -> None:
    assert ANSWERS.keys() == LISTS


@pytest.mark.parametrize("header", ["authorization: Bearer", "x-api-key:"])
@pytest.mark.parametrize("path", ANSWERS)
async def test_a_list_shows_what_the_key_may_use(
    raw: RawGateway, key: str, path: str, header: str
) -> None:
    whole, cut = ANSWERS[path]
    raw.upstream.script = answer(200, compact(whole))
    answered = await ask(raw, f"{header} {key}", path)
    assert (answered.status, answered.body) == (200, compact(cut))


async def test_a_list_names_no_other_model_and_no_host(
    raw: RawGateway, bearer: str
) -> None:
    entry = {"name": "llama3.1", "model": "llama3.1", "details": {"parent_model": ""}}
    told = {
        "remote_model": "secret-a",
        "remote_host": "http://secret",
        "of": ["secret"],
    }
    whole = entry | told | {"details": {"parent_model": "secret-b"} | told}
    raw.upstream.script = answer(200, compact({"models": [whole]} | told))
    assert (await ask(raw, bearer)).body == compact({"models": [entry]})


async def test_a_key_for_everything_sees_every_model(raw: RawGateway) -> None:
    raw.upstream.script = answer(200, compact(native(*NAMES)))
    everything = f"authorization: Bearer {await raw.new_key('*')}"
    assert (await ask(raw, everything)).body == compact(native(*NAMES))


async def test_patterns_hold_for_lists(raw: RawGateway) -> None:
    raw.upstream.script = answer(200, compact(native(*NAMES)))
    publisher = f"authorization: Bearer {await raw.new_key('hf.co/team/*:*')}"
    assert (await ask(raw, publisher)).body == compact(native("hf.co/team/LLAMA:q4"))


@pytest.mark.parametrize("grpc", ["", "\r\ncontent-type: application/grpc"])
async def test_a_key_without_read_sees_no_list(raw: RawGateway, grpc: str) -> None:
    other = await raw.new_key("*", scopes=["inference"])
    answered = await ask(raw, f"authorization: Bearer {other}{grpc}")
    assert_row(answered, rows.ENDPOINT)
    assert raw.upstream.received == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_two_lists_that_differ_in_what_is_hidden_are_answered_alike(
    raw: RawGateway, bearer: str, method: str
) -> None:
    seen = []
    for hidden in ((), NAMES[1:]):
        body = compact(native("llama3.1:latest", *hidden))
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-type: text/plain; n={len(body)}\r\n"
            f"etag: {len(body)}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        raw.upstream.script = (head.encode(), body if method == "GET" else b"")
        answered = await ask(raw, bearer, method=method)
        ours = {"date", "x-request-id", "request-id"}
        seen.append([answered.status, answered.body])
        seen[-1] += [pair for pair in answered.headers if pair[0] not in ours]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_list_has_our_type_and_our_date(
    raw: RawGateway, bearer: str, method: str
) -> None:
    head, body = answer(200, compact(native()), "text/plain; secret")[0].split(
        b"\r\n\r\n"
    )
    head += b"\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
    raw.upstream.script = (head, body if method == "GET" else b"")
    answered = await ask(raw, bearer, method=method)
    assert answered.header("content-type") == "application/json"
    assert "1970" not in (answered.header("date") or "")


@pytest.mark.parametrize("length", ["content-length: 4711\r\n", ""])
async def test_a_head_has_no_body_and_no_length(
    raw: RawGateway, bearer: str, length: str
) -> None:
    raw.upstream.script = (f"HTTP/1.1 200 OK\r\n{length}\r\n".encode(),)
    answered = await ask(raw, bearer, method="HEAD")
    assert (answered.status, answered.header("content-length")) == (200, None)


async def test_a_list_may_come_in_pieces(raw: RawGateway, bearer: str) -> None:
    body = compact(native(*NAMES))
    pieces = [body[i : i + 7] for i in range(0, len(body), 7)]
    raw.upstream.script = stream("application/json", pieces)
    assert (await ask(raw, bearer)).body == compact(native("llama3.1:latest"))


@pytest.mark.parametrize(("size", "status"), [(MIB, 200), (MIB + 1, 502)])
async def test_a_list_has_a_longest_size(
    raw: RawGateway, bearer: str, size: int, status: int
) -> None:
    raw.upstream.script = answer(200, compact(native(*NAMES)).ljust(size))
    answered = await ask(raw, bearer)
    assert answered.status == status
    if status != 200:
        assert_row(answered, rows.UPSTREAM)


UNREADABLE = {
    "no json": answer(200, "{"),
    "no object": answer(200, "[]"),
    "no list": answer(200, '{"models":{}}'),
    "two lists": answer(200, '{"models":[],"models":[]}'),
    "an entry with a name twice": answer(200, '{"models":[{"name":1,"name":2}]}'),
    "text after it": answer(200, '{"models":[]}{}'),
    "a stream": answer(200, '{"error":"x"}\n', "application/x-ndjson"),
    "another success": answer(203, "{"),
    "nothing": answer(200),
    "nothing in pieces": stream("application/json", ()),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n",),
    "encoded": (
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nzzz",
    ),
    "cut off": (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", Act.RESET),
    "an error": answer(500, '{"error":"open /root/.ollama"}'),
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_an_answer_that_cannot_be_read_is_a_502(
    raw: RawGateway, bearer: str, case: str
) -> None:
    raw.upstream.script = UNREADABLE[case]
    assert_row(await ask(raw, bearer), rows.UPSTREAM)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_nothing_is_a_502_for_every_method(
    raw: RawGateway, bearer: str, method: str
) -> None:
    raw.upstream.script = answer(200)
    answered = await ask(raw, bearer, method=method)
    assert_row(answered, rows.UPSTREAM, head=method == "HEAD")


async def test_a_list_that_takes_too_long_to_cut_is_a_503(raw: RawGateway) -> None:
    # Each name is compared with each pattern: together some 40 seconds of work.
    patterns = ",".join(f"*x{i}*" for i in range(1000))
    slow = f"authorization: Bearer {await raw.new_key(patterns)}"
    entries = [{"name": f"m{i}", "model": f"m{i}"} for i in range(29_000)]
    raw.upstream.script = answer(200, compact({"models": entries[:9]}))
    assert (await ask(raw, slow)).status == 200
    raw.upstream.script = answer(200, compact({"models": entries}))
    assert_row(await ask(raw, slow), rows.UNAVAILABLE)


async def test_an_error_without_a_body_has_its_row(
    raw: RawGateway, bearer: str
) -> None:
    raw.upstream.script = (b"HTTP/1.1 500 X\r\ncontent-length: 4711\r\n\r\n",)
    assert_row(await ask(raw, bearer, method="HEAD"), rows.UPSTREAM, head=True)


async def test_another_model_than_the_one_asked_for_is_not_shown(
    raw: RawGateway, bearer: str
) -> None:
    raw.upstream.script = answer(200, compact(ENTRY | {"id": "secret-a"}))
    assert_row(await ask(raw, bearer, "/v1/models/:model"), rows.UPSTREAM)


async def test_a_model_that_is_not_installed_is_a_404(
    raw: RawGateway, bearer: str
) -> None:
    raw.upstream.script = answer(404, '{"error":"model \\"secret\\" not found"}')
    assert_row(await ask(raw, bearer, "/v1/models/:model"), rows.NO_MODEL)


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_list_is_shown_when_authz_goes_away(
    stores: Stores, tmp_path: Path, fate: signal.Signals, method: str
) -> None:
    async with own_gateway(stores, tmp_path) as gateway:
        bearer = f"authorization: Bearer {await gateway.new_key('llama3.1')}"

        async def go_away() -> None:
            gateway.authz.process.send_signal(fate)

        whole = compact(native(*NAMES)) if method == "GET" else b""
        gateway.upstream.script = (go_away, *answer(200, whole))
        during = await ask(gateway, bearer, method=method)
        after = await ask(gateway, bearer, method=method)
        if fate is signal.SIGSTOP:
            gateway.authz.process.send_signal(signal.SIGCONT)
    for answered in (during, after):
        assert_row(answered, rows.UNAVAILABLE, head=method == "HEAD")
