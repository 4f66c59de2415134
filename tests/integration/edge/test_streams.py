"""Streams pass byte for byte, as they come, but for errors of the model server."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from authz.local.stack import got
from tests.raw import http1, read_answer
from tests.upstream import Act, chunk, stream

if TYPE_CHECKING:
    from tests.gateway import Gateway
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
REPLACED = b'{"error":"The model server failed."}'
MARKS = (b'{"error":', b'{"StatusCode":')

# Lines that are errors, that nearly are, and that only look like it.
LINES = {
    NDJSON: [
        b'{"model":"m","response":"hi","done":false}',
        b'{"error":"open /root/.ollama/models"}',
        b'{"StatusCode":401,"Status":"x","error":"unauthorized at internal.example"}',
        b'{"error":',
        b'{"errors":1}',
        b'{"error',
        b'{"Status',
        b'{"StatusCode"',
        b"{",
        b"",
        b' {"error":1}',
        b'data: {"error":"x"}',
        b'{"response":"\\n{\\"error\\":1}"}',
        '{"response":"\u00e9\u4e16"}'.encode(),
    ],
    SSE: [
        b'data: {"id":1,"choices":[{"delta":{"content":"hi"}}]}',
        b'data: {"error":{"message":"open /root"}}',
        b'data: {"StatusCode":500}',
        b"data: [DONE]",
        b"event: message_stop",
        b"data:",
        b"dat",
        b"",
        b'data: {"err',
        b'data: {"error":',
        b'{"error":"not an event"}',
        b'data:  {"error":1}',
    ],
}


def scrubbed(content_type: str, data: bytes) -> bytes:
    """What must come out: line by line, whatever way the bytes were cut."""
    prefix = b"data: " if content_type == SSE else b""
    errors = tuple(prefix + mark for mark in MARKS)
    lines = data.split(b"\n")
    return b"\n".join(
        prefix + REPLACED if line.startswith(errors) else line for line in lines
    )


@pytest.fixture(scope="session")
async def request_bytes(shared_raw_gateway: RawGateway) -> bytes:
    body = b'{"model":"llama3.1"}'
    key = await shared_raw_gateway.new_key("llama3.1")
    return (
        b"POST /api/chat HTTP/1.1\r\nhost: gateway\r\n"
        b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
        % (key.encode(), len(body))
    ) + body


async def through(
    raw: RawGateway, request_bytes: bytes, content_type: str, parts: list[bytes]
) -> bytes:
    raw.upstream.script = stream(content_type, [part for part in parts if part])
    answer = await http1(raw.port, request_bytes)
    assert (answer.status, answer.ended) == (200, ""), answer
    return answer.body


RECORDED = {
    NDJSON: b"\n".join(LINES[NDJSON][:4]) + b"\n",
    SSE: b"\n\n".join(LINES[SSE][:4]) + b"\n\n",
}


@pytest.mark.parametrize("content_type", RECORDED)
async def test_a_recorded_stream_cut_at_every_position_comes_out_the_same(
    raw: RawGateway, request_bytes: bytes, content_type: str
) -> None:
    data = RECORDED[content_type]
    expected = scrubbed(content_type, data)
    assert expected != data
    for position in range(len(data) + 1):
        parts = [data[:position], data[position:]]
        assert await through(raw, request_bytes, content_type, parts) == expected
    single = [data[n : n + 1] for n in range(len(data))]
    assert await through(raw, request_bytes, content_type, single) == expected


@pytest.mark.parametrize("content_type", LINES)
@pytest.mark.parametrize("seed", range(60))
async def test_any_lines_cut_anywhere_come_out_line_by_line(
    raw: RawGateway, request_bytes: bytes, content_type: str, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a seed, so that a failure repeats
    lines = chance.choices(LINES[content_type], k=chance.randint(1, 8))
    data = b"\n".join(lines) + chance.choice([b"", b"\n", b"\n\n"])
    inside = range(1, len(data))
    cuts = sorted(chance.sample(inside, min(chance.choice([1, 3, 50]), len(inside))))
    edges = zip([0, *cuts], [*cuts, len(data)], strict=True)
    parts = [data[start:end] for start, end in edges]
    answered = await through(raw, request_bytes, content_type, parts)
    assert answered == scrubbed(content_type, data)


@pytest.mark.parametrize("content_type", RECORDED)
async def test_a_line_that_envoy_gets_in_two_reads_comes_out_the_same(
    raw: RawGateway, request_bytes: bytes, content_type: str
) -> None:
    """The second part is sent only when Envoy has taken the first."""
    prefix = b"data: " if content_type == SSE else b""
    line = prefix + b'{"error":"/root"}\n'
    data = prefix + b'{"n":1}\n' + line + prefix + b'{"n":2}\n'
    start = len(data) - 2 * len(line)
    for cut in range(max(start, 1), len(data)):
        head, first, second, end = stream(content_type, [data[:cut], data[cut:]])
        read = Taken(raw, len(head) + len(first))
        await read.mark()
        raw.upstream.script = (head, first, read.wait, second, end)
        answered = await http1(raw.port, request_bytes)
        assert answered.body == scrubbed(content_type, data), cut


@dataclass
class Taken:
    """Tells when Envoy has read so many bytes more of the model server."""

    gateway: RawGateway
    size: int
    before: int = 0

    async def mark(self) -> None:
        self.before = await self._total()

    async def wait(self) -> None:
        async with asyncio.timeout(20):
            while await self._total() < self.before + self.size:
                pass

    async def _total(self) -> int:
        path = "/stats?filter=cluster.ollama.upstream_cx_rx_bytes_total"
        async with got(self.gateway.run / "admin.sock", path) as page:
            return int((await page.text()).rpartition(":")[2])


async def test_a_line_arrives_before_the_next_is_made(
    raw: RawGateway, request_bytes: bytes
) -> None:
    """No buffering: the second line is made only after the first has been read."""
    first, second = b'{"n":1}\n', b'{"error":"x"}\n'
    go_on = asyncio.Event()
    head, *_ = stream(NDJSON, [])
    end = b"0\r\n\r\n"
    raw.upstream.script = (head, chunk(first), go_on, chunk(second), end)
    reader, writer = await asyncio.open_connection("127.0.0.1", raw.port)
    async with asyncio.timeout(20):
        writer.write(request_bytes)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(chunk(first))) == chunk(first)
        go_on.set()
        assert REPLACED in await reader.readuntil(end)
    writer.close()


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
async def test_what_is_no_stream_is_not_touched(
    raw: RawGateway, request_bytes: bytes, content_type: str
) -> None:
    """One answer, not lines; an error in one has a status of its own."""
    data = b'{"error":"the text of a model"}\n'
    assert await through(raw, request_bytes, content_type, [data]) == data


async def test_a_stream_with_a_length_is_watched_too(
    raw: RawGateway, request_bytes: bytes
) -> None:
    data = b'{"a":1}\n{"error":"/root"}\n'
    head = "HTTP/1.1 200 OK\r\ncontent-type: Application/X-NDJSON; charset=utf-8\r\n"
    length = f"content-length: {len(data)}\r\n\r\n"
    raw.upstream.script = (f"{head}{length}".encode() + data,)
    answer = await http1(raw.port, request_bytes)
    assert answer.body == scrubbed(NDJSON, data)


async def test_a_line_of_a_megabyte_passes(
    raw: RawGateway, request_bytes: bytes
) -> None:
    line = json.dumps({"context": list(range(150_000))}).encode() + b"\n"
    parts = [line[n : n + 30_000] for n in range(0, len(line), 30_000)]
    assert await through(raw, request_bytes, NDJSON, parts) == line


async def test_an_endless_error_line_is_swallowed_to_its_end(
    raw: RawGateway, request_bytes: bytes
) -> None:
    parts = [b'{"error":"', *[b"/root" * 5_000] * 50, b'"}\n{"n":1}\n']
    answered = await through(raw, request_bytes, NDJSON, parts)
    assert answered == REPLACED + b'\n{"n":1}\n'


async def test_a_stream_that_breaks_off_ends_as_broken(
    raw: RawGateway, request_bytes: bytes
) -> None:
    head, *_ = stream(NDJSON, [])
    raw.upstream.script = (head, chunk(b'{"n":1}\n'), Act.RESET)
    reader, writer = await asyncio.open_connection("127.0.0.1", raw.port)
    writer.write(request_bytes)
    async with asyncio.timeout(20):
        answer = await read_answer(reader)
    writer.close()
    assert (answer.status, answer.ended) == (200, "broken off")
