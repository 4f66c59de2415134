"""One address cannot keep the others waiting: Envoy refuses what is beyond its rate."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from authz.core.credential import mint
from authz.local.stack import got
from tests.gateway import own_gateway
from tests.integration.edge.test_strangers import checks_of
from tests.raw import TIMEOUT_S, http1, http2, read_answer
from tests.rows import Row, assert_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway import Gateway, Stores
    from tests.raw import Answer
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]

TOO_MANY = Row(429, "rate_limited", "Too many requests.", {"retry-after": "1"})
EACH, A_SITE, REMEMBERED = 2, 5, 4
BODY = b'{"model":"llama3.1"}'
REFUSED = re.compile(
    r"^envoy_http_local_rate_limit_enforced"
    r'\{envoy_local_http_ratelimit_prefix="address"} (\d+)$',
    re.MULTILINE,
)


def hardly_anything(directory: Path) -> None:
    """Let an address ask twice and no more, and trust one proxy in front."""
    file = directory / "listener.yaml"
    text = file.read_text()
    for old, new in (
        ("max_tokens: 300\n", f"max_tokens: {EACH}\n"),
        ("max_tokens: 1200\n", f"max_tokens: {A_SITE}\n"),
        ("tokens_per_fill: 300\n", "tokens_per_fill: 1\n"),
        ("tokens_per_fill: 1200\n", "tokens_per_fill: 1\n"),
        ("fill_interval: 1s\n", "fill_interval: 86400s\n"),
        (
            "max_dynamic_descriptors: 10000\n",
            f"max_dynamic_descriptors: {REMEMBERED}\n",
        ),
        ("_trusted_hops: 0\n", "_trusted_hops: 1\n"),
    ):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture(scope="module")
async def bounded(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RawGateway]:
    """Run one gateway for all tests here, each of which has addresses of its own."""
    logs = tmp_path_factory.mktemp("bounded")
    async with own_gateway(stores, logs, hardly_anything) as gateway:
        yield gateway


def chat(key: str, *more: bytes) -> bytes:
    lines = (
        b"POST /api/chat HTTP/1.1",
        b"host: a",
        b"authorization: Bearer " + key.encode(),
        b"content-length: %d" % len(BODY),
        *more,
    )
    return b"\r\n".join(lines) + b"\r\n\r\n" + BODY


async def from_address(gateway: RawGateway, address: str, request: bytes) -> Answer:
    """Connect from an address of this machine."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", gateway.port, local_addr=(address, 0)
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(request)
            return await read_answer(reader)
    finally:
        writer.close()


async def told(gateway: RawGateway, forwarded: str, key: str) -> int:
    """Ask as the trusted proxy does for a client of its own; return the status."""
    header = b"x-forwarded-for: " + forwarded.encode()
    return (await http1(gateway.port, chat(key, header))).status


async def test_an_address_beyond_its_rate_is_refused_while_another_is_served(
    bounded: RawGateway,
) -> None:
    key = await bounded.new_key()
    noisy, other = "127.0.0.2", "127.0.0.3"
    for _ in range(EACH):
        assert (await from_address(bounded, noisy, chat(key))).status == 200
    assert_row(await from_address(bounded, noisy, chat(key)), TOO_MANY)
    assert (await from_address(bounded, other, chat(key))).status == 200


async def test_neither_authz_nor_the_model_server_sees_what_is_beyond_the_rate(
    bounded: RawGateway,
) -> None:
    key, noisy = await bounded.new_key(), "127.0.0.4"
    for _ in range(EACH):
        await from_address(bounded, noisy, chat(key))
    bounded.upstream.reset()
    checks = await checks_of(bounded)
    for raw_key in (key, mint(bytes(32))):
        assert_row(await from_address(bounded, noisy, chat(raw_key)), TOO_MANY)
    assert await checks_of(bounded) == checks
    assert bounded.upstream.received == []


async def test_what_is_beyond_the_rate_looks_the_same_over_every_protocol(
    bounded: RawGateway,
) -> None:
    key, noisy = await bounded.new_key(), "203.0.113.1"
    for _ in range(EACH):
        assert await told(bounded, noisy, key) == 200
    headers = [(":method", "POST"), (":path", "/api/chat"), (":scheme", "http")]
    headers += [(":authority", "a"), ("authorization", f"Bearer {key}")]
    headers += [("x-forwarded-for", noisy)]
    assert_row(await http2(bounded.port, headers, BODY), TOO_MANY)
    grpc = [*headers, ("content-type", "application/grpc")]
    assert_row(await http2(bounded.port, grpc, BODY), TOO_MANY)


async def test_probes_and_requests_without_a_key_use_up_nothing(
    bounded: RawGateway,
) -> None:
    key, address = await bounded.new_key(), "127.0.0.5"
    probe = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"
    keyless = b"GET /api/tags HTTP/1.1\r\nhost: a\r\n\r\n"
    for request, status in ((probe, 200), (keyless, 401)):
        for _ in range(EACH + 1):
            assert (await from_address(bounded, address, request)).status == status
    for status in (*(EACH * [200]), 429):
        assert (await from_address(bounded, address, chat(key))).status == status
    assert (await from_address(bounded, address, probe)).status == 200


async def test_more_addresses_than_are_remembered_are_served(
    bounded: RawGateway,
) -> None:
    key = await bounded.new_key()
    addresses = [f"203.0.113.{number}" for number in range(10, 11 + REMEMBERED)]
    for address in addresses:
        statuses = [await told(bounded, address, key) for _ in range(EACH + 1)]
        assert statuses == [*(EACH * [200]), 429]
    # The last is still known, and the first begins anew.
    assert await told(bounded, addresses[-1], key) == 429
    assert await told(bounded, addresses[0], key) == 200


async def test_the_addresses_of_an_ipv6_network_share_one_rate(
    bounded: RawGateway,
) -> None:
    key = await bounded.new_key()
    statuses = [
        await told(bounded, f"2001:db8:1:1::{number:x}", key)
        for number in range(EACH + 1)
    ]
    assert statuses == [*(EACH * [200]), 429]


async def test_the_networks_of_an_ipv6_site_have_the_rate_of_the_site(
    bounded: RawGateway,
) -> None:
    key = await bounded.new_key()
    statuses = [
        await told(bounded, f"2001:db8:2:{number:x}::1", key)
        for number in range(A_SITE + 1)
    ]
    assert statuses == [*(A_SITE * [200]), 429]


async def test_a_client_does_not_get_a_rate_for_each_address_that_it_writes(
    bounded: RawGateway,
) -> None:
    key = await bounded.new_key()
    statuses = [
        await told(bounded, f"198.51.100.{number}, 203.0.113.2", key)
        for number in range(EACH + 1)
    ]
    assert statuses == [*(EACH * [200]), 429]


async def test_what_was_refused_is_counted(bounded: RawGateway) -> None:
    key = await bounded.new_key()
    before = await refused(bounded)
    for _ in range(EACH + 1):
        await told(bounded, "203.0.113.3", key)
    assert await refused(bounded) == before + 1


async def refused(gateway: RawGateway) -> int:
    async with got(gateway.run / "admin.sock", "/stats/prometheus") as response:
        found = REFUSED.search(await response.text())
    assert found is not None
    return int(found[1])
