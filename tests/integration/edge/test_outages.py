"""Parts that stop, hang or are slow: each has its row, in its time."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests import rows
from tests.gateway import own_gateway, running_test_gateway
from tests.raw import http1
from tests.rows import assert_row
from tests.upstream import Act

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.gateway import Stores
    from tests.raw import Answer

# listener.yaml gives authz 2 s for a verdict; the machine may be busy.
HUNG_AUTHZ_S = 8
AT_ONCE_S = 2

LIST = b'{"models":[]}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(LIST)


def with_times(**seconds: float) -> Callable[[Path], None]:
    """Shorten times of the listener, by their names in listener.yaml."""

    def edit(directory: Path) -> None:
        file = directory / "listener.yaml"
        text = file.read_text()
        for name, value in seconds.items():
            text, found = re.subn(rf"\b{name}: \S+", f"{name}: {value}s", text)
            assert found == 1, name
        file.write_text(text)

    return edit


def chat(key: str, *, length: int | None = None) -> bytes:
    body = b'{"model":"llama3.1"}'
    return (
        b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n" % (key.encode(), length or len(body)) + body
    )


def chunked(key: str, *chunks: bytes) -> bytes:
    return b"".join(
        [
            b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer ",
            key.encode(),
            b"\r\ntransfer-encoding: chunked\r\n\r\n",
            *chunks,
        ]
    )


async def timed(port: int, request: bytes) -> tuple[Answer, float]:
    started = time.monotonic()
    answered = await http1(port, request)
    return answered, time.monotonic() - started


async def test_an_authz_that_hangs_is_a_503_and_recovers_by_itself(
    stores: Stores, tmp_path: Path
) -> None:
    async with own_gateway(stores, tmp_path) as gateway:
        key = await gateway.new_key()
        whole = chunked(key, b'14\r\n{"model":"llama3.1"}\r\n0\r\n\r\n')
        gateway.authz.process.send_signal(signal.SIGSTOP)
        try:
            for request in (chat(key), whole):
                answered, took = await timed(gateway.port, request)
                assert_row(answered, rows.UNAVAILABLE)
                assert took < HUNG_AUTHZ_S
            stranger = b"GET /api/tags HTTP/1.1\r\nhost: a\r\n\r\n"
            assert_row(await http1(gateway.port, stranger), rows.UNAUTHORIZED)
        finally:
            gateway.authz.process.send_signal(signal.SIGCONT)
        assert (await http1(gateway.port, chat(key))).status == 200


@pytest.mark.parametrize("seen", [b"", HEAD], ids=["at once", "after the head"])
async def test_an_authz_that_hangs_while_a_list_arrives_is_a_503_in_time(
    stores: Stores, tmp_path: Path, seen: bytes
) -> None:
    async with own_gateway(stores, tmp_path) as gateway:

        async def hang() -> None:
            gateway.authz.process.send_signal(signal.SIGSTOP)

        gateway.upstream.script = (seen, hang, (HEAD + LIST).removeprefix(seen))
        key = await gateway.new_key()
        request = b"GET /api/tags HTTP/1.1\r\nhost: a\r\nx-api-key: %b\r\n\r\n"
        try:
            answered, took = await timed(gateway.port, request % key.encode())
        finally:
            gateway.authz.process.send_signal(signal.SIGCONT)
        assert_row(answered, rows.UNAVAILABLE)
        assert took < HUNG_AUTHZ_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_an_authz_that_is_gone_is_a_503_at_once(
    stores: Stores, tmp_path: Path, number: signal.Signals
) -> None:
    async with own_gateway(stores, tmp_path) as gateway:
        key = await gateway.new_key()
        gateway.authz.process.send_signal(number)
        await gateway.authz.process.wait()
        for request in (chat(key), chunked(key, b"2\r\n{}\r\n0\r\n\r\n")):
            answered, took = await timed(gateway.port, request)
            assert_row(answered, rows.UNAVAILABLE)
            assert took < AT_ONCE_S
        grpc = chat(key).replace(
            b"host: a", b"host: a\r\ncontent-type: application/grpc"
        )
        assert_row(await http1(gateway.port, grpc), rows.UNAVAILABLE)


async def test_a_model_server_that_is_not_there_is_a_502(
    stores: Stores, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nobody.sock"
    async with running_test_gateway(stores, None, nowhere, tmp_path) as gateway:
        request = chat(await gateway.new_key())
        for _ in range(2):
            assert_row(await http1(gateway.port, request), rows.UPSTREAM)


@pytest.mark.parametrize("limit", ["stream_idle_timeout", "max_stream_duration"])
async def test_a_model_server_that_never_begins_to_answer_is_a_504(
    stores: Stores, tmp_path: Path, limit: str
) -> None:
    async with own_gateway(stores, tmp_path, with_times(**{limit: 0.5})) as gateway:
        gateway.upstream.script = (Act.HANG,)
        key = await gateway.new_key()
        assert_row(await http1(gateway.port, chat(key)), rows.UPSTREAM_SLOW)


async def test_a_client_that_dawdles_is_a_408(stores: Stores, tmp_path: Path) -> None:
    edit = with_times(request_headers_timeout=0.5, request_timeout=1)
    async with own_gateway(stores, tmp_path, edit) as gateway:
        key = await gateway.new_key()
        half_a_head = b"POST /api/chat HTTP/1.1\r\nhost: a\r\n"
        half_a_body = chat(key, length=100)
        half_a_chunk = chunked(key, b"14\r\n{")
        for request in (half_a_head, half_a_body, half_a_chunk):
            assert_row(await http1(gateway.port, request), rows.SLOW_CLIENT)
        assert gateway.upstream.received == []
