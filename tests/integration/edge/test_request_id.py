"""Whose id a request has: ours, unless a trusted gateway in front gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.gateway import own_gateway
from tests.raw import http1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway import Gateway, Stores
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]


def trust_the_gateway_in_front(directory: Path) -> None:
    file = directory / "listener.yaml"
    text = file.read_text()
    ours = "preserve_external_request_id: false"
    assert text.count(ours) == 1
    file.write_text(text.replace(ours, "preserve_external_request_id: true"))


@pytest.fixture(scope="module")
async def trusting(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RawGateway]:
    logs = tmp_path_factory.mktemp("trusting")
    async with own_gateway(stores, logs, trust_the_gateway_in_front) as gateway:
        yield gateway


async def ids_of(gateway: RawGateway, sent: bytes) -> tuple[str | None, str | None]:
    """Return the id that the client gets and the one that travels on."""
    key = (await gateway.new_key()).encode()
    answered = await http1(
        gateway.port,
        b"GET /api/version HTTP/1.1\r\nhost: a\r\nx-api-key: %b\r\n"
        b"x-request-id: %b\r\n\r\n" % (key, sent),
    )
    assert answered.status == 200
    assert answered.header("request-id") == answered.header("x-request-id")
    upstream = gateway.upstream.received[-1].headers.get("x-request-id")
    return answered.header("x-request-id"), upstream


async def test_a_clients_own_id_is_replaced_everywhere(raw: RawGateway) -> None:
    shown, travels = await ids_of(raw, b"chosen-by-the-client")
    assert shown == travels != "chosen-by-the-client"


async def test_behind_a_trusted_gateway_its_id_is_kept(trusting: RawGateway) -> None:
    assert await ids_of(trusting, b"from-the.front_1") == ("from-the.front_1",) * 2


@pytest.mark.parametrize("sent", [b"a b", b'a"b', b"a;b", b"x" * 129])
async def test_an_id_that_could_break_a_log_is_replaced(
    trusting: RawGateway, sent: bytes
) -> None:
    shown, travels = await ids_of(trusting, sent)
    assert shown == travels != sent.decode()


async def test_ids_that_are_replaced_are_told_apart_on_one_connection(
    trusting: RawGateway,
) -> None:
    """Two requests of one id would hold what their key's limits reserve only once."""
    key = await trusting.new_key()
    trusting.upstream.received.clear()
    headers = {"x-api-key": key, "x-request-id": "no id"}
    async with httpx.AsyncClient(base_url=trusting.url, headers=headers) as calls:
        answers = [await calls.get("/api/version") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    shown = {answer.headers["x-request-id"] for answer in answers}
    assert len(shown) == 3
    travelled = [of.headers["x-request-id"] for of in trusting.upstream.received]
    assert shown == set(travelled)
