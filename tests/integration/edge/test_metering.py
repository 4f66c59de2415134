"""What an answer cost is read as it passes, and sent to authz when it ends."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes

from authz.core.credential import mint
from authz.local.process import private_directory
from authz.local.stack import got
from tests.gateway import own_gateway
from tests.integration.edge.test_strangers import rss
from tests.log_receiver import PERIODIC, log_receiver, metadata, send_logs_to
from tests.raw import http1
from tests.upstream import Act, answer, chunk, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway import Gateway, Stores
    from tests.log_receiver import Receiver
    from tests.raw import Answer
    from tests.upstream import RawUpstream, Step

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
JSON = "application/json"
VERDICT = "envoy.filters.http.ext_authz"

# Gives the reader of an answer with "x-pieces: first,step" the first so many bytes,
# then so many a time; what Envoy reads at once is chance. Where the answer has
# "x-break: n", reading the n-th piece fails; where it has "x-limited", authz has told
# what is left of the key's limits.
CUTS = """
local whole, original = read, envoy_on_response
local first, step, left
function read(meter, text)
  left = left - 1
  if left == 0 then error("broken on purpose") end
  whole(meter, text:sub(1, first))
  for at = first + 1, #text, step do
    whole(meter, text:sub(at, at + step - 1))
  end
end
function envoy_on_response(handle)
  local headers = handle:headers()
  first, step = (headers:get("x-pieces") or "0,99999999"):match("(%d+),(%d+)")
  left = tonumber(headers:get("x-break") or "0")
  if headers:get("x-limited") then
    local told = { ["x-ratelimit-remaining-requests"] = "4", ["set-cookie"] = "a=b" }
    local metadata = handle:streamInfo():dynamicMetadata()
    metadata:set("envoy.filters.http.ext_authz", "limited", told)
  end
  original(handle)
end
"""


class Metered:
    """A gateway, and what it has sent about each request."""

    def __init__(self, gateway: Gateway[RawUpstream], log: Receiver, key: str) -> None:
        self.gateway = gateway
        self.log = log
        self.key = key

    async def ask(self, *script: Step, fields: str = "") -> Answer:
        """Ask a model server that answers by a script, with more headers."""
        first, *rest = script
        assert isinstance(first, bytes)
        first = first.replace(b"\r\n", f"\r\n{fields}".encode(), 1)
        self.gateway.upstream.script = (first, *rest)
        return await http1(self.gateway.port, chat(self.key))

    async def usage(self, *script: Step, fields: str = "") -> dict[str, Any]:
        """Return what the entry of such a request says of its cost."""
        return await self.usage_of(await self.ask(*script, fields=fields))

    async def usage_of(self, answered: Answer) -> dict[str, Any]:
        entry = await self.log.entry(answered.header("x-request-id"))
        return metadata(entry, "authz.usage")


def chat(key: str) -> bytes:
    body = b'{"model":"llama3.1"}'
    return (
        b"POST /api/chat HTTP/1.1\r\nhost: a\r\nreferer: http://secret.example/\r\n"
        b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
        % (key.encode(), len(body))
        + body
    )


@pytest.fixture(scope="module")
async def metered(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Metered]:
    with private_directory("authz-logs-") as run:
        socket = run / "receiver.sock"

        def edit(directory: Path) -> None:
            send_logs_to(socket, directory)
            with (directory / "gateway.lua").open("a") as script:
                script.write(CUTS)

        logs = tmp_path_factory.mktemp("metered")
        async with (
            log_receiver(socket) as log,
            own_gateway(stores, logs, edit) as gateway,
        ):
            yield Metered(gateway, log, await gateway.new_key("llama3.1"))


def known(
    read: int, written: int, chunks: int | None = None, *, ended: bool = True
) -> dict[str, Any]:
    """Return what is said of an answer with these counts."""
    said: dict[str, Any] = {"input_tokens": read, "output_tokens": written}
    if chunks is not None:
        said["chunks"] = chunks
    return said | ({"ended": True} if ended else {})


def ndjson(*frames: object) -> tuple[str, bytes]:
    return NDJSON, b"".join(compact(frame) + b"\n" for frame in frames)


def sse(*frames: object, last: bytes = b"") -> tuple[str, bytes]:
    lines = [b"data: " + compact(frame) + b"\n\n" for frame in frames]
    return SSE, b"".join(lines) + last


def document(value: object) -> tuple[str, bytes]:
    return JSON, compact(value)


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


DONE = b"data: [DONE]\n\n"
TOKEN = {"model": "m", "message": {"role": "assistant", "content": "hi"}, "done": False}
DELTA: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "hi"}}]}
NOTHING: dict[str, Any] = {
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
}
SPENT: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
TOKENS: dict[str, Any] = {"input_tokens": 7, "output_tokens": 9}
# Texts that a model or a client can write, and members that they can name.
MIMICRY: dict[str, Any] = {
    "done": True,
    "prompt_eval_count": 1,
    "eval_count": 1,
    "usage": SPENT | {"prompt_tokens": 1},
    "response": {"usage": {"input_tokens": 1}},
    "type": "message_stop",
    "text": '"}\n\n{"done":true,"eval_count":1}\ndata: [DONE]\n\\" \\\\',
}
CALL = [{"function": {"name": "f", "arguments": MIMICRY}}]
TEXT = json.dumps(MIMICRY)
CONTEXT = [*range(100_000, 250_000)]

# An answer, and what its entry says.
ANSWERS: dict[str, tuple[tuple[str, bytes], dict[str, Any]]] = {
    "native stream": (
        ndjson(TOKEN, TOKEN, {"done": True, "prompt_eval_count": 7, "eval_count": 9}),
        known(7, 9, 3),
    ),
    "native document": (
        document({"response": "x", "done": True, "prompt_eval_count": 7}),
        known(7, 0),
    ),
    "native zeros left out": (ndjson({"done": True}), known(0, 0, 1)),
    "native without an end": (ndjson(TOKEN, TOKEN), {"chunks": 2}),
    "native embeddings": (
        document({"embeddings": [[0.5, -1e-9]], "prompt_eval_count": 7}),
        known(7, 0),
    ),
    "native embeddings of nothing": (document({"embeddings": []}), known(0, 0)),
    "native embedding of old": (document({"embedding": [0.5]}), {"ended": True}),
    "native context of a megabyte": (
        ndjson({"context": CONTEXT, "done": True, "eval_count": 9}),
        known(0, 9, 1),
    ),
    "native members behind the counts": (
        ndjson(
            {
                "done": True,
                "prompt_eval_count": 7,
                "eval_count": 9,
                "message": {"content": TEXT, "tool_calls": CALL},
                "logprobs": [MIMICRY, [MIMICRY]],
            }
        ),
        known(7, 9, 1),
    ),
    "native text before the end": (
        ndjson({"response": TEXT, "done": False}, {"message": {"tool_calls": CALL}}),
        {"chunks": 2},
    ),
    "chat stream": (
        sse(DELTA, DELTA, {"choices": [], "usage": SPENT}, last=DONE),
        known(7, 9, 3),
    ),
    "chat stream without usage": (
        sse(DELTA, DELTA | {"usage": None}, last=DONE),
        {"chunks": 2, "ended": True},
    ),
    "chat stream of tools": (
        sse({"choices": [{"delta": {"tool_calls": CALL, "content": TEXT}}]}),
        {"chunks": 1},
    ),
    "chat document": (
        document({"choices": [{"message": MIMICRY}], "usage": SPENT}),
        known(7, 9),
    ),
    "completions stream": (
        sse({"usage": NOTHING}, {"usage": NOTHING}, {"usage": SPENT}, last=DONE),
        known(7, 9, 3),
    ),
    "completions stream cut short": (
        sse({"usage": NOTHING}, {"usage": NOTHING}),
        {"chunks": 2},
    ),
    "openai embeddings": (
        document({"data": [{"embedding": "AAAA"}], "usage": {"prompt_tokens": 7}}),
        known(7, 0),
    ),
    "responses stream": (
        sse(
            {"type": "response.created", "response": {"usage": None}},
            {"type": "response.output_text.delta", "delta": TEXT},
            {
                "type": "response.completed",
                "response": {
                    "instructions": TEXT,
                    "tools": [MIMICRY],
                    "metadata": MIMICRY,
                    "usage": TOKENS | {"details": {"input_tokens": 1}},
                    "output": [MIMICRY],
                },
            },
        ),
        known(7, 9, 3),
    ),
    "responses stream cut off": (
        sse({"type": "response.incomplete", "response": {"usage": TOKENS}}),
        known(7, 9, 1),
    ),
    "responses document": (
        document({"tools": [MIMICRY], "output": [MIMICRY], "usage": TOKENS}),
        known(7, 9),
    ),
    "messages stream": (
        sse(
            {"type": "message_start", "message": {"usage": {"input_tokens": 1}}},
            {"type": "content_block_delta", "delta": {"text": TEXT}},
            {"type": "message_delta", "delta": {}, "usage": TOKENS},
            {"type": "message_stop"},
        ),
        known(7, 9, 4),
    ),
    "messages stream without an end": (
        sse({"type": "message_delta", "usage": TOKENS}),
        known(7, 9, 1, ended=False),
    ),
    "messages document": (
        document({"type": "message", "content": [MIMICRY], "usage": TOKENS}),
        known(7, 9),
    ),
    "named events": (
        (SSE, b'event: message_stop\ndata: {"type":"x"}\n\n: data: [DONE]\n\n'),
        {"chunks": 1},
    ),
    "members that stand twice": (
        (JSON, b'{"eval_count":1,"eval_count":9,"done":false,"done":true}'),
        known(0, 9),
    ),
    "escapes": (
        (
            NDJSON,
            b'{"a":{"b":"\\\\\\"},"},"done":true,"eval_count":9,"c":["\\"]","\\\\"]}\n',
        ),
        known(0, 9, 1),
    ),
    "white space": (
        (JSON, b'{ "usage" :\n {"prompt_tokens" : 7 ,\t"completion_tokens":9 } }\n'),
        known(7, 9),
    ),
    "an error line": (
        (NDJSON, compact(TOKEN) + b'\n{"error":"/root","eval_count":9}\n'),
        {"chunks": 1, "failed": True},
    ),
    "no json": ((JSON, b'"usage" {"eval_count":'), {}),
}
ENDLESS = 8 << 20
SHORT = [name for name, ((_, data), _) in ANSWERS.items() if len(data) < 5_000]


def whole(content_type: str, data: bytes) -> bytes:
    [answered] = answer(200, data, content_type)
    return answered


@pytest.mark.parametrize("name", ANSWERS)
async def test_the_servers_own_counts_are_told_and_no_text_that_looks_like_them(
    metered: Metered, name: str
) -> None:
    sent, expected = ANSWERS[name]
    assert await metered.usage(whole(*sent)) == expected


@pytest.mark.parametrize("name", SHORT)
async def test_it_is_the_same_however_an_answer_is_cut(
    metered: Metered, name: str
) -> None:
    sent, expected = ANSWERS[name]
    for pieces in ("1,1", "2,3", "3,7", "5,64"):
        fields = f"x-pieces: {pieces}\r\n"
        assert await metered.usage(whole(*sent), fields=fields) == expected, pieces


@pytest.mark.parametrize(
    "name", ["escapes", "completions stream cut short", "chat stream", "white space"]
)
async def test_it_is_the_same_for_two_pieces_cut_anywhere(
    metered: Metered, name: str
) -> None:
    sent, expected = ANSWERS[name]
    answers = [
        await metered.ask(whole(*sent), fields=f"x-pieces: {position},9999\r\n")
        for position in range(len(sent[1]) + 1)
    ]
    for position, answered in enumerate(answers):
        assert await metered.usage_of(answered) == expected, position


@pytest.mark.parametrize("token", ["-1", "1.5", "1e3", "2147483649", "9" * 400, '"7"'])
async def test_a_count_that_cannot_be_is_not_told(metered: Metered, token: str) -> None:
    data = b'{"done":true,"eval_count":9,"prompt_eval_count":%b}' % token.encode()
    assert await metered.usage(whole(JSON, data)) == {"ended": True}


@pytest.mark.parametrize(
    "data",
    [
        b'{"%b' % (b"k" * ENDLESS),
        b'{"eval_count":%b' % (b"9" * ENDLESS),
        b"[" * ENDLESS,
    ],
    ids=["key", "number", "arrays"],
)
async def test_what_never_ends_takes_no_memory(metered: Metered, data: bytes) -> None:
    envoy = metered.gateway.envoy.process.pid
    await metered.ask(whole(JSON, data))
    before = rss(envoy)
    for _ in range(3):
        await metered.ask(whole(JSON, data))
    assert rss(envoy) - before < ENDLESS


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream"])
async def test_other_types_are_not_read(metered: Metered, content_type: str) -> None:
    sent = whole(content_type, b'{"done":true,"eval_count":9}')
    assert await metered.usage(sent) == {}


async def test_a_document_passes_as_it_is_with_its_length(metered: Metered) -> None:
    _, data = ANSWERS["chat document"][0]
    answered = await metered.ask(whole(JSON, data))
    assert answered.header("content-length") == str(len(data))
    assert answered.body == data


async def test_a_document_is_not_held_until_its_end(metered: Metered) -> None:
    first, last = b'{"eval_count":9,', b'"done":true}'
    go_on = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 28"
    metered.gateway.upstream.script = (head + b"\r\n\r\n" + first, go_on, last)
    reader, writer = await asyncio.open_connection("127.0.0.1", metered.gateway.port)
    async with asyncio.timeout(20):
        writer.write(chat(metered.key))
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(first)) == first
        go_on.set()
        assert await reader.readexactly(len(last)) == last
    writer.close()


@pytest.mark.parametrize("abort", [True, False], ids=["reset", "closed"])
async def test_when_a_client_leaves_what_came_so_far_is_told(
    metered: Metered, abort: bool
) -> None:
    head, *_ = stream(NDJSON, [])
    line = chunk(compact(TOKEN) + b"\n")
    metered.gateway.upstream.script = (head, line, line, Act.HANG)
    reader, writer = await asyncio.open_connection("127.0.0.1", metered.gateway.port)
    async with asyncio.timeout(20):
        writer.write(chat(metered.key))
        fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        for _ in range(2):
            await reader.readuntil(b"false}\n")
    if abort:
        writer.transport.abort()
    else:
        writer.close()
    [request_id] = [f.split(" ")[1] for f in fields if f.startswith("x-request-id")]
    entry = await metered.log.entry(request_id)
    assert metadata(entry, "authz.usage") == {"chunks": 2}


async def test_a_stream_tells_of_itself_while_it_goes_on(metered: Metered) -> None:
    head, line, end = stream(NDJSON, [compact(TOKEN) + b"\n"])

    async def until_told() -> None:
        [received] = metered.gateway.upstream.received[-1:]
        request_id = received.headers["x-request-id"]
        entry = await metered.log.entry(request_id, kind=PERIODIC)
        assert metadata(entry, VERDICT)["key_id"]

    assert await metered.usage(head, line, until_told, end) == {"chunks": 1}


@pytest.mark.parametrize("content_type", [JSON, NDJSON])
async def test_if_metering_breaks_the_answer_goes_on_unread(
    metered: Metered, content_type: str
) -> None:
    data = compact({"done": True, "eval_count": 9})
    fields = "x-break: 1\r\n"
    answered = await metered.ask(whole(content_type, data), fields=fields)
    assert (answered.status, answered.body) == (200, data)
    assert await metered.usage_of(answered) == {}


async def test_if_metering_breaks_errors_are_held_back_all_the_same(
    metered: Metered,
) -> None:
    head, first, second, end = stream(NDJSON, [b"{}\n", b'{"error":"/root"}\n'])
    came = metered.gateway.upstream.received

    async def until_told() -> None:
        request_id = came[-1].headers["x-request-id"]
        await metered.log.entry(request_id, kind=PERIODIC)

    script = (head, first, until_told, second, end)
    answered = await metered.ask(*script, fields="x-break: 1\r\n")
    assert answered.body == b'{}\n{"error":"The model server failed."}\n'


@pytest.mark.parametrize("status", [200, 400, 404, 500])
@pytest.mark.parametrize("content_type", [JSON, SSE])
async def test_what_is_left_of_limits_is_told_and_nothing_else(
    metered: Metered, status: int, content_type: str
) -> None:
    [sent] = answer(status, b"{}", content_type)
    fields = "x-limited: 1\r\nx-ratelimit-limit-requests: 9\r\n"
    answered = await metered.ask(sent, fields=fields)
    assert answered.header("x-ratelimit-remaining-requests") == "4"
    assert answered.header("x-ratelimit-limit-requests") is None
    assert answered.header("set-cookie") is None


async def test_limits_of_the_model_server_are_not_ours(metered: Metered) -> None:
    fields = "x-ratelimit-limit-requests: 9\r\n"
    answered = await metered.ask(whole(*document({})), fields=fields)
    assert answered.header("x-ratelimit-limit-requests") is None


UNKNOWN = mint(b"never issued".ljust(32))
# A WINDOW_UPDATE by nothing, for the whole connection.
BROKEN_FRAME = bytes.fromhex("000004 08 00 00000000 00000000")


@pytest.mark.parametrize("limits", ["", "rpm=100,tpm=100000", "concurrency=200"])
async def test_entries_travel_together(metered: Metered, limits: str) -> None:
    """One message each would cost authz as much as the checks."""
    key = await metered.gateway.new_key("llama3.1", limits=limits)
    assert len(await messages_of(metered, key, 20)) < 20


async def test_whose_slot_others_may_wait_for_is_told_of_alone_and_at_once(
    metered: Metered,
) -> None:
    key = await metered.gateway.new_key("llama3.1", limits="concurrency=8")
    assert [len(told) for told in await messages_of(metered, key, 8)] == [1] * 8


async def messages_of(metered: Metered, key: str, number: int) -> list[set[str]]:
    """Return the messages that tell of so many requests at once."""
    metered.gateway.upstream.script = answer(200, b"{}", JSON)
    answers = await asyncio.gather(
        *(http1(metered.gateway.port, chat(key)) for _ in range(number))
    )
    ids = {answered.header("x-request-id") or "" for answered in answers}
    for request_id in ids:
        await metered.log.entry(request_id)
    return [told & ids for told in metered.log.messages if told & ids]


async def test_no_entry_is_sent_of_whom_authz_refuses(metered: Metered) -> None:
    denied = [
        await http1(metered.gateway.port, chat(UNKNOWN)),
        await http1(metered.gateway.port, b"GET /api/tags HTTP/1.1\r\nhost: a\r\n\r\n"),
        await http1(metered.gateway.port, b"GARBAGE\r\n\r\n"),
        await http1(
            metered.gateway.port, chat(metered.key).replace(b"llama", b"other")
        ),
    ]
    refused = {answered.header("x-request-id") for answered in denied}
    assert {answered.status for answered in denied} == {400, 401, 403}
    # Entries come in order; after this one nothing of theirs can come.
    await metered.usage(whole(*document({})))
    assert not refused & {
        e.request.request_id for _, e in metered.log.entries if e.request
    }


async def test_no_entry_has_a_credential_or_another_header(metered: Metered) -> None:
    answered = await metered.ask(whole(*document({})))
    entry = await metered.log.entry(answered.header("x-request-id"))
    assert entry.request
    assert entry.request.request_headers == {}
    assert metered.key not in repr(entry)
    assert "secret.example" not in repr(entry)


def over_http2(key: str) -> tuple[H2Connection, bytes]:
    """Return a connection with the request of `chat`, and what to send for it."""
    body = b'{"model":"llama3.1"}'
    connection = H2Connection()
    connection.initiate_connection()
    connection.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/api/chat"),
            ("authorization", f"Bearer {key}"),
            ("content-length", str(len(body))),
        ],
    )
    connection.send_data(1, body, end_stream=True)
    return connection, connection.data_to_send()


async def asking(gateway: Gateway[RawUpstream]) -> None:
    """Wait until authz has been asked."""
    path = "/stats?filter=cluster.authz.upstream_rq_active$"
    async with asyncio.timeout(20):
        while True:
            async with got(gateway.run / "admin.sock", path) as page:
                if int((await page.text()).rpartition(":")[2]):
                    return


@pytest.mark.parametrize(
    "how", ["http1 reset", "http2 reset", "http2 cancelled", "http2 broken", "waits"]
)
async def test_who_is_gone_before_the_verdict_came_is_told_apart(
    metered: Metered, how: str
) -> None:
    gateway, log = metered.gateway, metered.log
    before = len(log.entries)
    connection, request = over_http2(metered.key)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    gateway.authz.process.send_signal(signal.SIGSTOP)
    try:
        writer.write(request if how.startswith("http2") else chat(metered.key))
        await asking(gateway)
        match how:
            case "http1 reset":
                writer.transport.abort()
            case "http2 reset" | "http2 cancelled":
                connection.reset_stream(
                    1,
                    ErrorCodes.NO_ERROR if how == "http2 reset" else ErrorCodes.CANCEL,
                )
                writer.write(connection.data_to_send())
            case "http2 broken":
                writer.write(BROKEN_FRAME)
        await log.more_than(before)
    finally:
        gateway.authz.process.send_signal(signal.SIGCONT)
        writer.close()
    [(name, entry)] = log.entries[before:]
    assert (name, metadata(entry, VERDICT)) == ("authz.gone", {})
    assert entry.request
    assert re.fullmatch(r"[0-9a-f-]{36}", entry.request.request_id)


async def test_a_receiver_that_is_not_there_disturbs_no_request(
    stores: Stores, tmp_path: Path
) -> None:
    def edit(directory: Path) -> None:
        send_logs_to(tmp_path / "nobody.sock", directory)

    async with own_gateway(stores, tmp_path, edit) as gateway:
        key = await gateway.new_key("llama3.1")
        gateway.upstream.script = (whole(*document({"done": True})),)
        for _ in range(20):
            answered = await http1(gateway.port, chat(key))
            assert (answered.status, answered.body) == (200, b'{"done":true}')
