"""Hard to knock over: whoever holds on, floods or hoards, good calls go on."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from authz.local.stack import got
from benchmarks.attackers import ATTACKS, attack
from tests import rows
from tests.failing import until
from tests.gateway import own_gateway
from tests.integration.edge.test_addresses import chat, from_address
from tests.integration.edge.test_strangers import MIB, rss
from tests.raw import http1
from tests.rows import assert_row
from tests.upstream import OK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.gateway import Gateway, Stores
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]

WITHIN_S = 20.0
GOOD = "127.0.0.9"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"


@dataclass
class Watch:
    """How good calls fared, and Envoy's memory, before and at its most."""

    before: int
    most: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def grown(self) -> int:
        return self.most - self.before


@asynccontextmanager
async def good_calls(gateway: RawGateway) -> AsyncIterator[Watch]:
    """Call one after the other, each on a connection of its own, during the block."""
    key = await gateway.new_key()
    await from_address(gateway, GOOD, chat(key))
    pid = gateway.envoy.process.pid
    watch = Watch(rss(pid))
    ended = asyncio.Event()

    async def call() -> None:
        while not ended.is_set():
            watch.statuses[(await from_address(gateway, GOOD, chat(key))).status] += 1
            watch.most = max(watch.most, rss(pid))
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 0.02)

    calling = asyncio.create_task(call())
    try:
        yield watch
    finally:
        ended.set()
        await calling


async def counted(gateway: RawGateway, name: str) -> int:
    """Return a number of Envoy's own."""
    path = f"/stats?filter=^{re.escape(name)}$"
    async with got(gateway.run / "admin.sock", path) as response:
        return int((await response.text()).rpartition(": ")[2])


def changed(**values: str) -> Callable[[Path], None]:
    """Return an edit that sets members of these names in Envoy's files."""

    def edit(directory: Path) -> None:
        for name, value in values.items():
            found = 0
            for file in directory.glob("*.yaml"):
                text, times = re.subn(
                    rf"\b{name}: .*", f"{name}: {value}", file.read_text()
                )
                file.write_text(text)
                found += times
            assert found, name

    return edit


def heap(size: int) -> Callable[[Path], None]:
    return changed(max_heap_size_bytes=str(size))


async def test_good_calls_go_on_under_all_attacks_at_once(
    stores: Stores, tmp_path: Path
) -> None:
    async with own_gateway(stores, tmp_path) as gateway:
        async with good_calls(gateway) as watch:
            log = tmp_path / "attackers.log"
            seen = await attack(gateway.port, list(ATTACKS), 15, log)
        assert set(watch.statuses) == {200}
        assert watch.grown < 256 * MIB
        assert seen["idle connections"]["connections"] >= 2000
        assert seen["slow headers"]["408"] >= 200
        assert seen["large bodies"].keys() <= {"connections", "ends", "401"}
        assert seen["rapid resets"]["resets"] > 1000
        assert seen["rapid resets"]["ends"] > 1

        async def alone() -> bool:
            return await counted(gateway, "http.gateway.downstream_cx_active") == 0

        await until(alone, WITHIN_S)
        bodies = {request.body for request in gateway.upstream.received}
        assert bodies == {chat("").partition(b"\r\n\r\n")[2]}


async def test_strangers_who_hoard_make_room(stores: Stores, tmp_path: Path) -> None:
    async with own_gateway(stores, tmp_path, heap(64 * MIB)) as gateway:
        async with good_calls(gateway) as watch:
            log = tmp_path / "attackers.log"
            await attack(gateway.port, ["hoarded streams", "unread answers"], 8, log)
        assert set(watch.statuses) == {200}
        assert watch.grown < 128 * MIB
        reset = "envoy.overload_actions.reset_high_memory_stream.count"
        assert await counted(gateway, reset) > 100
        assert await counted(gateway, "http2.tx_flush_timeout") > 100


async def test_uploads_of_good_keys_do_not_outgrow_the_memory(
    stores: Stores, tmp_path: Path
) -> None:
    size, uploads = 128 * MIB, 20
    async with own_gateway(stores, tmp_path, heap(size)) as gateway:
        key = await gateway.new_key()
        head = b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n"
        lines = head % key.encode() + b"content-length: %d\r\n\r\n" % (16 * MIB)
        pid = gateway.envoy.process.pid
        before = most = rss(pid)
        sending = [asyncio.create_task(hold(gateway, lines)) for _ in range(uploads)]
        async for _ in until_done(sending):
            most = max(most, rss(pid))
        assert most - before < 1.4 * size
        async with good_calls(gateway) as watch:
            await asyncio.sleep(0)
        assert watch.statuses == {200: 1}


async def hold(gateway: RawGateway, lines: bytes) -> None:
    """Send all of 16 MiB but a byte, or as much as is taken; then leave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    with suppress(ConnectionError):
        writer.write(lines)
        for _ in range(255):
            writer.write(b" " * (MIB // 16))
            await writer.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(), 1)
    writer.close()


async def until_done(tasks: list[asyncio.Task[None]]) -> AsyncIterator[None]:
    while await asyncio.wait(tasks, timeout=0.02) and not all(t.done() for t in tasks):
        yield
    yield
    await asyncio.gather(*tasks)


async def test_an_upload_that_is_cut_off_is_answered_as_any_overload(
    stores: Stores, tmp_path: Path
) -> None:
    def overloaded(directory: Path) -> None:
        file = directory / "envoy.yaml"
        text = file.read_text()
        assert text.count("value: 0.97") == 1
        file.write_text(text.replace("value: 0.97", "value: 0.0001"))

    async with own_gateway(stores, tmp_path, overloaded) as gateway:
        active = "overload.envoy.load_shed_points.http1_server_abort_dispatch"

        async def is_overloaded() -> bool:
            return await counted(gateway, f"{active}.scale_percent") == 100

        await until(is_overloaded, WITHIN_S)
        assert_row(await http1(gateway.port, HEALTHZ), rows.UNAVAILABLE)


async def test_idle_connections_make_room_for_who_asks(
    stores: Stores, tmp_path: Path
) -> None:
    edit = changed(max_active_downstream_connections="100")
    async with own_gateway(stores, tmp_path, edit) as gateway:
        idle = [
            await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(100)
        ]
        key = await gateway.new_key()

        async def is_served() -> bool:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                return (await from_address(gateway, GOOD, chat(key))).status == 200
            return False

        await until(is_served, WITHIN_S)
        for _, writer in idle:
            writer.close()


async def test_a_full_queue_is_a_503_that_says_when_to_come_back(
    stores: Stores, tmp_path: Path
) -> None:
    async with own_gateway(stores, tmp_path, one_at_a_time) as gateway:
        key = await gateway.new_key()
        end = asyncio.Event()
        gateway.upstream.script = (end, *OK)
        taken = [asyncio.create_task(from_address(gateway, GOOD, chat(key)))]
        await until(lambda: _is(gateway, "active", 1), WITHIN_S)
        taken += [asyncio.create_task(from_address(gateway, GOOD, chat(key)))]
        await until(lambda: _is(gateway, "pending_active", 1), WITHIN_S)
        assert_row(await from_address(gateway, GOOD, chat(key)), rows.UNAVAILABLE)
        end.set()
        assert [answer.status for answer in await asyncio.gather(*taken)] == [200, 200]


def one_at_a_time(directory: Path) -> None:
    file = directory / "clusters.yaml"
    text = file.read_text()
    assert text.count(": 640\n") == 3
    file.write_text(text.replace(": 640\n", ": 1\n"))


async def _is(gateway: RawGateway, requests: str, number: int) -> bool:
    return await counted(gateway, f"cluster.ollama.upstream_rq_{requests}") == number
