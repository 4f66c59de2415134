"""Who are you, before how much: strangers cannot make the gateway hold much."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from authz.core.credential import mint
from tests import rows
from tests.gateway import own_gateway
from tests.raw import Http2, http1
from tests.rows import assert_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Gateway, Stores
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]

MIB = 1024 * 1024
UNKNOWN = mint(b"never issued".ljust(32))
STREAMS = 40
EACH = 15 * MIB
# 64 KiB a stream may be under way, and there is what Envoy keeps around a stream;
# if it held the bodies, that would be 600 MiB.
FLAT = 24 * MIB


def rss(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("length", [True, False], ids=["with length", "without"])
@pytest.mark.parametrize("hung", [False, True], ids=["authz answers", "authz hangs"])
async def test_large_uploads_of_strangers_leave_memory_flat(
    stores: Stores, tmp_path: Path, hung: bool, length: bool
) -> None:
    headers = [(":method", "POST"), (":path", "/api/chat"), (":scheme", "http")]
    headers += [(":authority", "a"), ("authorization", f"Bearer {UNKNOWN}")]
    if length:
        headers.append(("content-length", str(EACH)))
    async with own_gateway(stores, tmp_path) as gateway:
        await http1(gateway.port, b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        envoy = gateway.envoy.process.pid
        sizes = [rss(envoy)]
        if hung:
            gateway.authz.process.send_signal(signal.SIGSTOP)
        try:
            async with Http2(gateway.port) as client:
                statuses = await client.flood(
                    headers, EACH, STREAMS, lambda: sizes.append(rss(envoy))
                )
        finally:
            gateway.authz.process.send_signal(signal.SIGCONT)
        assert statuses == {"503" if hung else "401"}
        assert max(sizes) - sizes[0] < FLAT
        assert gateway.upstream.received == []


def partial(directory: Path) -> None:
    file = directory / "listener.yaml"
    text = file.read_text()
    for old, new in (
        ("allow_partial_message: false", "allow_partial_message: true"),
        ("max_request_bytes: 16777216", "max_request_bytes: 22"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    file.write_text(text)


def unseen(directory: Path) -> None:
    file = directory / "listener.yaml"
    text = file.read_text()
    found = re.compile(r"^( +)with_request_body:\n(\1 +.*\n)+", re.MULTILINE)
    assert len(found.findall(text)) == 1
    file.write_text(found.sub("", text))


@pytest.fixture(scope="module", params=[partial, unseen], ids=["in part", "not at all"])
async def edited(
    request: pytest.FixtureRequest,
    stores: Stores,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RawGateway]:
    """Run a listener that somebody has edited without knowing better."""
    logs = tmp_path_factory.mktemp("edited")
    async with own_gateway(stores, logs, request.param) as gateway:
        yield gateway


@pytest.mark.parametrize("more", [b"", b"authorization: Bearer x\r\n"])
async def test_a_body_that_authz_did_not_see_in_full_is_refused(
    edited: RawGateway, more: bytes
) -> None:
    body = b'{"model":"llama3.1"} ' + b" " * 100
    key = await edited.new_key()
    head = b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n"
    length = b"content-length: %d\r\n\r\n" % len(body)
    answered = await http1(edited.port, head % key.encode() + more + length + body)
    assert_row(answered, rows.UNAUTHORIZED if more else rows.INVALID)
    assert edited.upstream.received == []


@pytest.mark.parametrize("size", [0, 10, 70_000])
async def test_two_authorization_headers_are_refused_at_any_length(
    raw: RawGateway, size: int
) -> None:
    key = (await raw.new_key()).encode()
    two = b"authorization: Bearer %b\r\nauthorization: Bearer %b\r\n" % (key, key)
    head = b"POST /api/chat HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n"
    answered = await http1(raw.port, head % (two, size) + b" " * size)
    assert_row(answered, rows.UNAUTHORIZED)
    assert raw.upstream.received == []


@pytest.mark.parametrize(
    ("size", "checks"), [(65_536, 1), (65_537, 2)], ids=["short", "long"]
)
async def test_a_long_body_costs_a_second_check(
    raw: RawGateway, size: int, checks: int
) -> None:
    key = (await raw.new_key()).encode()
    body = b'{"model":"llama3.1"}'.ljust(size)
    head = b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n"
    length = b"content-length: %d\r\n\r\n" % size
    before = await checks_of(raw)
    answered = await http1(raw.port, head % key + length + body)
    assert answered.status == 200
    assert await checks_of(raw) - before == checks


async def checks_of(gateway: RawGateway) -> int:
    page = await http1(
        gateway.metrics_port,
        b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    found = re.search(rb"^authz_check_seconds_count (\d+)", page.body, re.MULTILINE)
    return int(found[1]) if found else 0
