"""Three gateways that share the limits of a key, whatever of them breaks."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from authz.adapters.postgres import connected
from authz.core.limits import LEASE_S
from authz.local.redis import embedded_redis
from authz.local.stack import got, running_authz
from tests.failing import unbounded, until
from tests.gateway import Gateway, Stores, own_gateway
from tests.raw import http1
from tests.upstream import Act, RawUpstream, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.raw import Answer
    from tests.services import Databases

    Replica = Gateway[RawUpstream]

WITHIN_S = 20
POLL_S = 0.02
NDJSON = "application/x-ndjson"
BODY = b'{"model":"llama3.1","messages":[{"role":"user","content":"Hello"}]}'
USED = 5 + 7
HEAD, TOKEN, LAST, END = stream(
    NDJSON,
    [b'{"done":false}\n', b'{"done":true,"prompt_eval_count":5,"eval_count":7}\n'],
)


@dataclass(frozen=True, slots=True)
class Site:
    """Three gateways and what they share."""

    replicas: list[Replica]
    stores: Stores
    redis: Any  # its own types leave open what it answers
    run: AsyncExitStack

    async def start_authz(self, replica: Replica) -> None:
        """Start authz once more where it was, and wait until it is ready."""
        where, log = ("127.0.0.1", replica.metrics_port), replica.logs / "authz.log"
        replica.authz = await self.run.enter_async_context(
            running_authz(replica.settings, where, log=log)
        )

    async def running(self, key_id: str) -> dict[bytes, float]:
        """Return how many seconds each slot of a key is yet leased for."""
        seconds, micros = await self.redis.time()
        now = seconds + micros / 1_000_000
        leases = await self.redis.zrange(of(key_id, ":running"), 0, -1, withscores=True)
        return {name: until - now for name, until in leases}

    async def let_pass(self, key_id: str, seconds: float) -> None:
        """Have as much less left of each lease of a key."""
        for name in await self.running(key_id):
            await self.redis.zincrby(of(key_id, ":running"), -seconds, name)

    async def no_slot_is_held(self, key_id: str) -> None:
        """Wait until all requests of a key are settled."""

        async def is_free() -> bool:
            return not await self.running(key_id)

        await until(is_free, WITHIN_S)

    async def charged(self, key_id: str) -> int:
        """Return what counts of a key's budget."""
        (spent,) = await self.redis.hvals(of(key_id, ":spent"))
        return int(spent)

    async def key(self, limits: str) -> tuple[str, str]:
        """Issue a key; return the raw one and its id."""
        raw_key = await self.replicas[0].new_key(limits=limits)
        async with connected(self.stores.database_url) as connection:
            key_id = await connection.fetchval(
                "SELECT key_id FROM secrets WHERE prefix = $1", raw_key[:11]
            )
        return raw_key, str(key_id)

    async def recorded(self, key_id: str, requests: int) -> int:
        """Wait until so many requests are recorded; return their tokens."""
        async with (
            connected(self.stores.database_url) as connection,
            asyncio.timeout(WITHIN_S),
        ):
            while True:
                row = await connection.fetchrow(
                    "SELECT sum(requests) AS requests,"
                    " sum(input_tokens + output_tokens) AS tokens"
                    " FROM usage WHERE key_id = $1",
                    UUID(key_id),
                )
                if row is not None and (row["requests"] or 0) >= requests:
                    assert row["requests"] == requests
                    return int(row["tokens"])
                await asyncio.sleep(POLL_S)


def of(key_id: str, what: str = "") -> str:
    return f"authz:limits:2:{{{key_id}}}{what}"


def more_often(directory: Path) -> None:
    """Have Envoy tell soon of what goes on, and take as much as one address asks."""
    file = directory / "listener.yaml"
    text, found = re.subn(
        "flush_interval: 20s", "flush_interval: 0.2s", file.read_text()
    )
    assert found == 1
    file.write_text(text)
    unbounded(directory)


@pytest.fixture(scope="module")
async def site(
    server: Databases, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """Gateways with a Redis that these tests may empty."""
    logs = tmp_path_factory.mktemp("replicas")
    async with (
        server.fresh() as database_url,
        embedded_redis(logs / "redis") as redis_url,
        AsyncExitStack() as stack,
    ):
        assert redis_url is not None
        stores = Stores(database_url, redis_url)
        redis = await stack.enter_async_context(Redis.from_url(redis_url))
        replicas = []
        for number in range(3):
            (logs / str(number)).mkdir()
            gateway = own_gateway(stores, logs / str(number), more_often)
            replicas.append(await stack.enter_async_context(gateway))
        yield Site(replicas, stores, redis, stack)


def request(raw_key: str) -> bytes:
    return (
        b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (raw_key.encode(), len(BODY), BODY)
    )


async def ask(replica: Replica, raw_key: str) -> Answer:
    return await http1(replica.port, request(raw_key))


@asynccontextmanager
async def begun(
    replica: Replica, raw_key: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send a request, whose connection is broken off when the block ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    try:
        writer.write(request(raw_key))
        yield reader, writer
    finally:
        writer.transport.abort()


async def is_refused(replica: Replica, raw_key: str) -> None:
    """Wait for it: while Redis is slow, a replica counts by itself."""
    replica.upstream.script = (HEAD, LAST, END)

    async def beyond_limits() -> bool:
        return (await ask(replica, raw_key)).status == 429

    await until(beyond_limits, WITHIN_S)


async def first_line(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(WITHIN_S):
        await reader.readuntil(b"false}\n")


async def test_the_slots_of_a_killed_envoy_are_free_after_their_lease(
    site: Site, tmp_path: Path
) -> None:
    raw_key, key_id = await site.key("concurrency=2")
    other = site.replicas[0]
    async with own_gateway(site.stores, tmp_path, more_often) as gateway:
        gateway.upstream.script = (HEAD, TOKEN, Act.HANG)
        async with begun(gateway, raw_key) as one, begun(gateway, raw_key) as two:
            await first_line(one[0])
            await first_line(two[0])
            gateway.envoy.process.kill()
            await gateway.envoy.process.wait()
            await is_refused(other, raw_key)
            assert all(
                0 < left <= LEASE_S for left in (await site.running(key_id)).values()
            )
            await site.let_pass(key_id, LEASE_S)
            for _ in range(2):
                assert (await ask(other, raw_key)).status == 200


async def test_a_stream_outlives_authz_and_is_settled_once_by_the_next_one(
    site: Site,
) -> None:
    raw_key, key_id = await site.key("concurrency=1,budget=100000/day")
    replica, go_on = site.replicas[1], asyncio.Event()
    replica.upstream.script = (HEAD, TOKEN, go_on, LAST, END)
    async with begun(replica, raw_key) as (reader, _):
        await first_line(reader)
        replica.authz.process.send_signal(signal.SIGKILL)
        await replica.authz.process.wait()
        await site.start_authz(replica)
        await is_refused(site.replicas[0], raw_key)
        go_on.set()
        async with asyncio.timeout(WITHIN_S):
            await reader.readuntil(b"0\r\n\r\n")
        await site.no_slot_is_held(key_id)
        assert await site.charged(key_id) == USED
        assert await site.recorded(key_id, 1) == USED


async def test_a_stream_that_outlives_its_lease_keeps_its_slot(site: Site) -> None:
    raw_key, key_id = await site.key("concurrency=1")
    one, other, _ = site.replicas
    one.upstream.script = (HEAD, TOKEN, Act.HANG)
    async with begun(one, raw_key) as (reader, _):
        await first_line(reader)
        await site.let_pass(key_id, LEASE_S - 1)

        async def is_renewed() -> bool:
            return max((await site.running(key_id)).values()) > LEASE_S / 2

        await until(is_renewed, WITHIN_S)
        await is_refused(other, raw_key)


async def test_a_used_up_budget_stays_used_up_when_redis_is_emptied(site: Site) -> None:
    raw_key, key_id = await site.key("concurrency=1,budget=10/day")
    for replica in site.replicas:
        replica.upstream.script = (HEAD, LAST, END)
    assert (await ask(site.replicas[0], raw_key)).status == 200
    await site.no_slot_is_held(key_id)
    await site.redis.flushall()
    refused = await ask(site.replicas[0], raw_key)  # which has not written it yet
    assert refused.error["code"] == "budget_exceeded"
    assert await site.recorded(key_id, 1) == USED
    for replica in site.replicas:
        await site.redis.flushall()
        refused = await ask(replica, raw_key)
        assert refused.error["code"] == "budget_exceeded"


async def test_many_at_once_get_no_more_of_a_budget_than_there_is(site: Site) -> None:
    """There is room for one: the first one holds, and uses, all that is left."""
    raw_key, key_id = await site.key("budget=10/day")
    go_on = asyncio.Event()
    before = [await by_itself(replica) for replica in site.replicas]
    for replica in site.replicas:
        replica.upstream.script = (HEAD, go_on, LAST, END)
    asking = [
        asyncio.create_task(ask(site.replicas[number % 3], raw_key))
        for number in range(50)
    ]

    async def all_others_are_refused() -> bool:
        return sum(task.done() for task in asking) >= 50 - 1 - len(site.replicas)

    await until(all_others_are_refused, WITHIN_S)
    go_on.set()
    statuses = [answer.status for answer in await asyncio.gather(*asking)]
    assert set(statuses) == {200, 429}
    # While Redis is slow a replica counts by itself, and has room for one, too.
    after = [await by_itself(replica) for replica in site.replicas]
    alone = sum(now > then for now, then in zip(after, before, strict=True))
    assert 1 <= statuses.count(200) <= 1 + alone
    tokens = await site.recorded(key_id, statuses.count(200))
    assert tokens == USED * statuses.count(200)


async def by_itself(replica: Replica) -> float:
    """Return how often Redis did not answer a replica in time."""
    page = await http1(replica.metrics_port, b"GET /metrics HTTP/1.0\r\n\r\n")
    found = re.search(rb"^authz_limits_unshared_total (\S+)$", page.body, re.MULTILINE)
    assert found
    return float(found[1])


async def test_a_flood_of_denials_drops_no_entry_of_what_was_allowed(
    site: Site,
) -> None:
    allowed, key_id = await site.key("tpm=1000000")
    replica, go_on = site.replicas[2], asyncio.Event()
    denied = await replica.new_key("another-model")
    replica.upstream.script = (HEAD, TOKEN, go_on, LAST, END)
    running = [asyncio.create_task(ask(replica, allowed)) for _ in range(20)]
    flood = [asyncio.create_task(refusals(replica, denied)) for _ in range(10)]
    await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
    go_on.set()
    assert {answer.status for answer in await asyncio.gather(*running)} == {200}
    assert await asyncio.gather(*flood) == [{403}] * 10
    assert await site.recorded(key_id, 20) == 20 * USED
    async with got(replica.run / "admin.sock", "/stats?filter=logs_dropped$") as page:
        dropped = await page.text()
    assert [int(line.rpartition(":")[2]) for line in dropped.splitlines()] == [0]


async def refusals(replica: Replica, raw_key: str) -> set[int]:
    return {(await ask(replica, raw_key)).status for _ in range(50)}


@pytest.mark.parametrize("came", [HEAD + TOKEN, b""], ids=["mid-stream", "at once"])
async def test_whoever_leaves_before_the_end_pays_from_the_budget(
    site: Site, came: bytes
) -> None:
    raw_key, key_id = await site.key("concurrency=1,budget=5/day")
    one, asked = site.replicas[0], asyncio.Event()

    async def told() -> None:
        asked.set()

    one.upstream.script = (came, told, Act.HANG)
    async with begun(one, raw_key) as (reader, _):
        async with asyncio.timeout(WITHIN_S):
            await asked.wait()
        if came:
            await first_line(reader)
    await site.no_slot_is_held(key_id)
    for replica in site.replicas:
        refused = await ask(replica, raw_key)
        assert refused.error["code"] == "budget_exceeded"
