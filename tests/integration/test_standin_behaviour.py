"""The stand-in misbehaves as it is told, and ends when it is told."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from authz.local.standin import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CHAT = {"model": "llama3.1", "messages": [{"role": "user", "content": "two words"}]}
MAX = {"max_tokens": 9}


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    path = f"{tmp_path}/ollama.sock"
    transport = httpx.AsyncHTTPTransport(uds=path)
    async with (
        listening(f"unix:{path}"),
        httpx.AsyncClient(base_url="http://o", transport=transport, timeout=5) as http,
    ):
        yield http


async def behave(http: httpx.AsyncClient, **behaviour: object) -> None:
    answer = await http.put("/_standin/behaviour", json=behaviour)
    assert answer.status_code == 204, answer.text


async def test_the_number_of_chunks_can_be_set(http: httpx.AsyncClient) -> None:
    await behave(http, chunks=50)
    frames = (await http.post("/api/chat", json=CHAT)).text.splitlines()
    assert len(frames) == 51
    assert json.loads(frames[-1])["eval_count"] == 50


TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
NESTED = {"type": "function", "function": TOOL}
CALLS = {
    "/api/chat": (NESTED, '"arguments":{"city":"Paris"}'),
    "/v1/chat/completions": (NESTED, '"finish_reason":"tool_calls"'),
    "/v1/responses": (TOOL | {"type": "function"}, '"type":"function_call"'),
    "/v1/messages": (TOOL, '"stop_reason":"tool_use"'),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", CALLS)
async def test_a_declared_tool_can_be_called(
    http: httpx.AsyncClient, path: str, *, stream: bool
) -> None:
    await behave(http, tool_call=True)
    tool, sign = CALLS[path]
    body = CHAT | MAX | {"stream": stream, "tools": [{"type": "other"}, tool]}
    answer = (await http.post(path, json=body)).text
    assert '"name":"weather"' in answer
    assert sign in answer
    assert "stand-in for" not in answer


async def test_without_a_declared_tool_none_is_called(http: httpx.AsyncClient) -> None:
    await behave(http, tool_call=True)
    assert "stand-in" in (await http.post("/api/chat", json=CHAT)).text


async def test_it_remembers_who_left_before_the_end(http: httpx.AsyncClient) -> None:
    await http.post("/api/chat", json=CHAT)
    await behave(http, chunk_delay_s=60)
    async with http.stream("POST", "/api/chat", json=CHAT) as answer:
        await anext(answer.aiter_raw())
    async with asyncio.timeout(5):
        while not (records := (await http.get("/_standin/requests")).json())[1]["left"]:
            pass
    assert [record["left"] for record in records] == [False, True]


@pytest.mark.parametrize("behaviour", [{"delay_s": 0.2}, {"chunk_delay_s": 0.04}])
async def test_an_answer_can_be_slow(
    http: httpx.AsyncClient, behaviour: dict[str, float]
) -> None:
    await behave(http, **behaviour)
    start = time.monotonic()
    await http.post("/api/chat", json=CHAT)
    assert time.monotonic() - start >= 0.2


async def test_any_answer_can_be_replaced_for_a_number_of_times(
    http: httpx.AsyncClient,
) -> None:
    headers = {"content-type": "text/x", "Retry-After": "7"}
    await behave(http, status=503, body="busy", headers=headers, times=2)
    answers = [await http.get("/api/version") for _ in range(3)]
    assert [a.status_code for a in answers] == [503, 503, 200]
    assert (answers[0].text, answers[0].headers["retry-after"]) == ("busy", "7")
    assert answers[0].headers.get_list("content-type") == ["text/x"]


async def test_a_reset_ends_the_misbehaviour(http: httpx.AsyncClient) -> None:
    await behave(http, status=500)
    assert (await http.get("/")).status_code == 500
    await http.delete("/_standin/behaviour")
    assert (await http.get("/")).status_code == 200


@pytest.mark.parametrize("die", ["before_headers", "after_headers", "mid_stream"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_connection_can_be_dropped(
    http: httpx.AsyncClient, die: str, *, streamed: bool
) -> None:
    await behave(http, die=die)
    status, got = None, b""
    body = CHAT | {"stream": streamed}
    try:
        async with http.stream("POST", "/api/chat", json=body) as answer:
            status = answer.status_code
            async for part in answer.aiter_raw():
                got += part
    except httpx.RemoteProtocolError:
        assert status == (None if die == "before_headers" else 200)
        assert bool(got) == (die == "mid_stream")
        assert b"eval_duration" not in got
    else:
        pytest.fail("the answer was complete")


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("/api/chat", '\n{"error":"gone"}\n'),
        ("/v1/chat/completions", '"content":""},"finish_reason":null}]}\n\n'),
        ("/v1/messages", '"text":""}}\n\n'),
    ],
)
async def test_a_model_can_fail_in_mid_stream(
    http: httpx.AsyncClient, path: str, end: str
) -> None:
    await behave(http, error_after_chunks=2, error_line='{"error":"gone"}')
    answer = await http.post(path, json=CHAT | MAX | {"stream": True})
    assert (answer.status_code, answer.text[-len(end) :]) == (200, end)


async def test_bytes_can_be_sent_as_given_and_one_by_one(
    http: httpx.AsyncClient,
) -> None:
    pieces = [b'{"do', b'ne":\xff', b"}\n"]
    encoded = [base64.b64encode(piece).decode() for piece in pieces]
    await behave(http, raw_stream=encoded, content_type="a/b", chunk_delay_s=0.02)
    async with http.stream("POST", "/api/chat", json=CHAT) as answer:
        assert [part async for part in answer.aiter_raw()] == pieces
        assert answer.headers["content-type"] == "a/b"


async def test_a_held_request_is_answered_when_the_behaviour_changes(
    http: httpx.AsyncClient,
) -> None:
    await behave(http, hold=True)
    held = asyncio.create_task(http.get("/api/version"))
    async with asyncio.timeout(5):
        while not (await http.get("/_standin/requests")).json():
            assert not held.done()
    await behave(http, hold=True, delay_s=1)
    assert (await asyncio.wait([held], timeout=0.05))[1] == {held}
    await http.delete("/_standin/behaviour")
    assert (await held).status_code == 200


@pytest.mark.parametrize(
    "behaviour",
    ["{", "[]", '{"unknown":1}', '{"delay_s":-1}', '{"die":"x"}', '{"chunks":0}'],
)
async def test_a_behaviour_that_is_not_understood_is_refused(
    http: httpx.AsyncClient, behaviour: str
) -> None:
    answer = await http.put("/_standin/behaviour", content=behaviour)
    assert answer.status_code == 400
    assert answer.json()
    assert (await http.get("/")).status_code == 200


async def start(address: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "authz.local.standin", address)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_program_even_with_open_streams(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "ollama.sock"
    program = await start(f"unix:{path}")
    assert program.stdout is not None
    assert await program.stdout.readline() == f"listening unix:{path}\n".encode()
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(base_url="http://o", transport=transport) as http:
        await behave(http, chunk_delay_s=60)
        async with http.stream("POST", "/api/chat", json=CHAT):
            program.send_signal(number)
            outputs = await asyncio.wait_for(program.communicate(), 5)
    assert (program.returncode, outputs) == (0, (b"", b""))
    assert not path.exists()


@pytest.mark.parametrize("address", ["", ":8080", "localhost", "unix:/no/such.sock"])
async def test_an_address_that_cannot_be_had_is_one_line(address: str) -> None:
    program = await start(address)
    _, errors = await asyncio.wait_for(program.communicate(), 10)
    assert program.returncode == 1
    assert errors.startswith(f"cannot listen at {address}: ".encode())
    assert errors.count(b"\n") == 1
