"""What requests used is written in batches, each request once, and none is lost."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc
import pytest
from prometheus_client import CollectorRegistry

from authz.adapters import postgres_batches, postgres_schema, postgres_usage
from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_usage import PostgresUsage, PostgresUsageLog, logging_usage
from authz.core.metering import Finished, meter
from authz.errors import StoreUnavailable
from authz.issuing import issue
from authz.local.process import private_directory
from authz.local.stack import free_port, got, running_authz
from authz.metrics import Metrics
from tests.access_logs import entry, message
from tests.failing import until
from tests.fakes import FakeClock
from tests.programs import authz
from tests.proxy import line_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from authz.local.envoy import Address
    from authz.local.process import Child
    from tests.proxy import Line

BUSY_S = 20.0
# One pause between two writes, and one write.
WRITTEN_WITHIN_S = postgres_batches.WRITE_EVERY_S + postgres_usage.WRITE_TIMEOUT_S
SHUTDOWN_S = 8.0  # calls, usage and last uses have two seconds each
KEY, OTHER_KEY = "0b7e6a52-5a4e-4c0e-9d7a-3f2b1c0d9e8f", str(UUID(int=7))
CLOCK = FakeClock()  # a moment that begins an hour
BEGAN = int(CLOCK.now.timestamp())
CHAT = Finished(
    request_id="",
    key_id=KEY,
    owner="someone",
    endpoint="/api/chat",
    model="h/n/m:t",
    began=BEGAN,
    status=200,
    duration_ms=1500,
    first_byte_ms=250,
    input_tokens=20,
    output_tokens=300,
    ended=True,
)
CALL = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
SUMS = """
SELECT coalesce(sum(requests), 0)::int AS requests,
       coalesce(sum(input_tokens + output_tokens), 0)::int AS tokens FROM usage
"""


def new_log(url: str, clock: FakeClock = CLOCK) -> PostgresUsageLog:
    return PostgresUsageLog(url, clock, Metrics(CollectorRegistry()))


def note(log: PostgresUsageLog, request_id: str | None = None, **more: Any) -> None:  # noqa: ANN401 - any field
    request_id = str(uuid4()) if request_id is None else request_id
    finished = replace(CHAT, request_id=request_id, **more)
    log.note(finished, meter(finished))


async def recorded(url: str, statement: str = SUMS) -> list[dict[str, Any]]:
    async with connected(url) as connection:
        return [dict(row) for row in await connection.fetch(statement)]


async def requests(url: str) -> int:
    (sums,) = await recorded(url)
    assert sums["tokens"] == 320 * sums["requests"]
    return int(sums["requests"])


async def until_recorded(url: str, number: int) -> None:
    async def is_recorded() -> bool:
        return await requests(url) == number

    await until(is_recorded, BUSY_S)


async def test_requests_are_summed_up_by_key_model_and_hour(database_url: str) -> None:
    log = new_log(database_url)
    note(log)
    note(log, began=BEGAN + 3599, output_tokens=None, chunks=5, request_bytes=8)
    note(log, left=True, ended=False, input_tokens=None)
    note(log, status=500, input_tokens=None)
    note(log, began=BEGAN + 3600, key_id=OTHER_KEY)
    await log.write()
    rows = await recorded(database_url, "SELECT * FROM usage ORDER BY hour, model")
    unknown, known, later = rows
    assert (unknown["model"], unknown["requests"], unknown["failed"]) == ("", 1, 1)
    assert known == {
        "hour": CLOCK.now,
        "key_id": UUID(KEY),
        "owner": "someone",
        "model": "h/n/m:t",
        "endpoint": "/api/chat",
        "requests": 3,
        "input_tokens": 22,
        "output_tokens": 305,
        "estimated": 2,
        "failed": 0,
        "aborted": 1,
        "duration_ms": 4500,
        "first_byte_ms": 750,
    }
    assert later["key_id"] == UUID(OTHER_KEY)
    assert later["hour"] == CLOCK.now + timedelta(hours=1)


async def test_a_request_counts_once_however_often_it_is_told_of(
    database_url: str,
) -> None:
    log, other = new_log(database_url), new_log(database_url)
    ids = [str(uuid4()), "of-a.trusted_gateway", "x" * 128, "ä ö"]
    for _ in range(2):
        for request_id in ids * 2:
            note(log, request_id)
            note(other, request_id)
        await asyncio.gather(log.write(), other.write())
    assert await requests(database_url) == len(ids)


async def write_unconfirmed(log: PostgresUsageLog, line: Line) -> None:
    """Write one entry over a line that breaks before its COMMIT is confirmed."""
    note(log, owner="the last that arrives")
    line.last = b"the last that arrives"
    with pytest.raises(StoreUnavailable):
        await log.write()
    line.mend()


async def test_a_batch_whose_end_nobody_confirmed_counts_once(
    database_url: str,
) -> None:
    async with line_to(database_url) as (line, url):
        log = new_log(url)
        await write_unconfirmed(log, line)
        note(log)
        await log.write()
    assert await requests(database_url) == 2


async def test_a_batch_that_never_arrived_is_written_when_the_line_is_back(
    database_url: str,
) -> None:
    async with line_to(database_url) as (line, url):
        log = new_log(url)
        note(log, owner="the lost one")
        line.lost = b"the lost one"
        with pytest.raises(StoreUnavailable):
            await log.write()
        line.mend()
        await log.write()
    assert await requests(database_url) == 1


async def test_what_may_be_counted_already_is_not_counted_again_when_ids_are_gone(
    database_url: str,
) -> None:
    clock, registry = FakeClock(), CollectorRegistry()
    async with line_to(database_url) as (line, url):
        log = PostgresUsageLog(url, clock, Metrics(registry))
        await write_unconfirmed(log, line)
        await until_recorded(database_url, 1)
        async with connected(database_url) as connection:
            await connection.execute("DELETE FROM usage_requests")
        clock.forward(3600)
        note(log)
        await log.write()
    assert await requests(database_url) == 2
    assert _dropped(registry, "uncertain") == 1


async def test_replicas_that_write_at_the_same_time_lose_nothing(
    database_url: str,
) -> None:
    logs = [new_log(database_url) for _ in range(4)]
    shared = [str(uuid4()) for _ in range(500)]
    for log in logs:
        for n, request_id in enumerate(shared):
            note(log, request_id, model=f"m{n % 7}")
        for n in range(500):
            note(log, key_id=str(UUID(int=n % 20)))
    await asyncio.gather(*(log.write() for log in logs))
    assert await requests(database_url) == 500 + 4 * 500


async def test_a_hundred_thousand_are_written_and_no_more_are_kept(
    database_url: str,
) -> None:
    registry = CollectorRegistry()
    log = PostgresUsageLog(database_url, CLOCK, Metrics(registry))
    for n in range(100_010):
        note(log, key_id=str(UUID(int=n % 50)))
    started = time.monotonic()
    await log.write()
    assert time.monotonic() - started < BUSY_S
    assert await requests(database_url) == 100_000
    assert _dropped(registry, "full") == 10


async def test_a_full_batch_does_not_wait_for_its_turn(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_batches, "WRITE_EVERY_S", 3600)
    monkeypatch.setattr(postgres_usage, "BATCH", 10)
    metrics = Metrics(CollectorRegistry())
    async with logging_usage(database_url, CLOCK, metrics) as log:
        for _ in range(10):
            note(log)
        await until_recorded(database_url, 10)
        note(log)
    assert await requests(database_url) == 11  # what is left is written at the end


async def test_a_database_that_hangs_holds_nobody_up(database_url: str) -> None:
    async with line_to(database_url) as (line, url):
        line.hang()
        log = new_log(url)
        note(log)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await log.write()
        assert time.monotonic() - started < BUSY_S / 2
        line.open.set()
        await log.write()
    assert await requests(database_url) == 1


async def test_the_tokens_of_a_key_are_those_written_and_those_that_wait(
    database_url: str,
) -> None:
    log = new_log(database_url)
    async with pooled(database_url) as pool:
        usage = PostgresUsage(pool, log)
        assert await usage.tokens_since(KEY, BEGAN) == 0
        note(log)
        note(log, began=BEGAN - 1)
        note(log, key_id=OTHER_KEY)
        assert await usage.tokens_since(KEY, BEGAN) == 320
        await log.write()
        assert await usage.tokens_since(KEY, BEGAN) == 320
        note(log)
        assert await usage.tokens_since(KEY, BEGAN) == 640
        assert await usage.tokens_since(KEY, BEGAN - 3600) == 960


async def test_the_tokens_of_a_batch_that_may_be_written_are_not_counted_twice(
    database_url: str,
) -> None:
    async with line_to(database_url) as (line, url), pooled(database_url) as pool:
        log = new_log(url)
        note(log, owner="the last that arrives")
        line.last = b"the last that arrives"
        with pytest.raises(StoreUnavailable):
            await log.write()
        await until_recorded(database_url, 1)
        assert await PostgresUsage(pool, log).tokens_since(KEY, BEGAN) == 320


async def test_months_before_a_budget_are_not_read(database_url: str) -> None:
    since = datetime.now(UTC) + timedelta(days=100)
    async with connected(database_url) as connection:
        await connection.execute(f"PREPARE tokens AS {postgres_usage._TOKENS}")  # noqa: SLF001 - its plan
        plan = await connection.fetch(
            f"EXPLAIN EXECUTE tokens ('{KEY}', '{since.isoformat()}')"
        )
        months = await connection.fetch(
            "SELECT inhrelid::regclass::text FROM pg_inherits"
            " WHERE inhparent = 'usage'::regclass"
        )
    text = "\n".join(row[0] for row in plan)
    assert f"usage_{since:%Y_%m}" in text
    earlier = {row[0] for row in months if row[0] < f"usage_{since:%Y_%m}"}
    assert earlier
    assert not any(month in text for month in earlier)


async def test_ids_are_forgotten_after_an_hour_bit_by_bit(database_url: str) -> None:
    log = new_log(database_url)
    for _ in range(5):
        note(log)
    await log.write()
    await _age_ids(database_url)
    count = "SELECT count(*)::int AS n FROM usage_requests"
    left = []
    for _ in range(4):
        note(log)
        await log.write()
        left += [row["n"] for row in await recorded(database_url, count)]
    assert left == [4, 3, 3, 4]
    assert await requests(database_url) == 9


async def test_months_are_added_and_one_that_is_elsewhere_is_passed_over(
    database_url: str,
) -> None:
    next_year = (datetime.now(UTC) + timedelta(days=400)).replace(day=15)
    log = new_log(database_url)
    async with connected(database_url) as connection:
        for months in (12, 13, 14):
            of = datetime.now(UTC).replace(day=15) + timedelta(days=30.5 * months)
            await connection.execute(f"DROP TABLE IF EXISTS usage_{of:%Y_%m}")
        note(log, began=int(next_year.timestamp()))
        await log.write()
        await postgres_schema.add_months(connection)
        tables = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relname ~ '^usage_[0-9]{4}_[0-9]{2}$'"
        )
    assert len(tables) == 24
    assert await requests(database_url) == 1


@dataclass
class Service:
    """`authz serve` on a database, and where it listens."""

    child: Child
    socket: Path
    metrics: Address

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[Any]:
        """Yield a stream as Envoy opens one."""
        async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
            stream: Any = channel.stream_unary(CALL)()
            await stream.write(message(name="authz.usage"))
            yield stream

    async def until_heard(self, number: int) -> None:
        """Wait until it has taken in so many requests."""
        finished = re.compile(
            r"^authz_requests_finished_total{.*} (\S+)$", re.MULTILINE
        )

        async def has_heard() -> bool:
            async with got(self.metrics, "/metrics") as response:
                counts = finished.findall(await response.text())
            return sum(map(float, counts)) == number

        await until(has_heard, BUSY_S)

    async def end(self, number: signal.Signals) -> int:
        """End it by a signal and return its status."""
        self.child.process.send_signal(number)
        return await self.child.process.wait()


@asynccontextmanager
async def serving(settings: Mapping[str, str], log: Path) -> AsyncIterator[Service]:
    with private_directory("authz-usage-") as run:
        given = {**settings, "AUTHZ_LISTEN": str(run)}
        metrics = ("127.0.0.1", free_port())
        async with running_authz(given, metrics, log=log) as child:
            yield Service(child, run / "authz-0.sock", metrics)


async def test_nothing_is_lost_when_the_service_is_told_to_stop(
    database_url: str, tmp_path: Path
) -> None:
    settings = {"AUTHZ_DATABASE_URL": database_url}
    async with serving(settings, tmp_path / "log") as service:
        stream = service.stream()
        envoy = await stream.__aenter__()
        for _ in range(30):
            await envoy.write(message(*(entry() for _ in range(10))))
    await stream.__aexit__(None, None, None)
    assert await requests(database_url) == 300


async def test_a_service_that_is_killed_loses_what_came_since_its_last_write(
    database_url: str, tmp_path: Path
) -> None:
    settings = {"AUTHZ_DATABASE_URL": database_url}
    async with (
        serving(settings, tmp_path / "log") as service,
        service.stream() as envoy,
    ):
        written, pending = (message(*(entry() for _ in range(100))) for _ in range(2))
        await envoy.write(written)
        await until_recorded(database_url, 100)
        recorded_at = time.monotonic()
        await envoy.write(pending)
        await service.until_heard(200)
        await service.end(signal.SIGKILL)
        killed_after = time.monotonic() - recorded_at
    lost = 200 - await requests(database_url)
    assert lost in {0, 100}, "a batch is written whole or not at all"
    assert lost == 0 or killed_after < WRITTEN_WITHIN_S


async def test_a_database_that_hangs_does_not_hold_up_the_end_which_tells_the_loss(
    database_url: str, tmp_path: Path
) -> None:
    many = postgres_usage.BATCH + 1000
    async with (
        line_to(database_url) as (line, url),
        serving({"AUTHZ_DATABASE_URL": url}, tmp_path / "log") as service,
        service.stream() as envoy,
    ):
        line.hang()
        for _ in range(many // 100):
            await envoy.write(message(*(entry() for _ in range(100))))
        await service.until_heard(many)
        told_at = time.monotonic()
        assert await service.end(signal.SIGTERM) == 0
        assert time.monotonic() - told_at < SHUTDOWN_S
    lines = [json.loads(text) for text in (tmp_path / "log").read_text().splitlines()]
    (lost,) = (each["requests"] for each in lines if each["event"] == "usage_lost")
    assert lost == many
    assert await requests(database_url) == 0


@pytest.fixture
async def key_id(database_url: str) -> UUID:
    new, _ = issue("ci", models=["*"], scopes=["read"], expires_at=None)
    async with connected(database_url) as connection:
        await PostgresKeyWriter(connection).create(new)
    log = new_log(database_url)
    model = "registry.ollama.ai/library/llama3.1:latest"
    now = int(time.time())
    requests_: tuple[dict[str, Any], ...] = (
        {"key_id": str(new.id), "model": model, "began": now},
        {"key_id": str(new.id), "owner": "b", "began": now - 30 * 86400},
        {"key_id": OTHER_KEY, "status": 502, "input_tokens": None, "began": now},
    )
    for more in requests_:
        note(log, **more)
    await log.write()
    return new.id


async def test_usage_is_shown_to_programs(
    key_id: UUID, database_url: str, tmp_path: Path
) -> None:
    async def groups(*words: str) -> dict[str | None, Any]:
        env = {"AUTHZ_DATABASE_URL": database_url}
        ended = await authz("usage", "--json", *words, cwd=tmp_path, env=env)
        assert ended.status == 0, ended
        by = words[words.index("--by") + 1] if "--by" in words else "key"
        return {each.pop(by): each for each in json.loads(ended.out)}

    by_key = await groups()
    assert by_key[str(key_id)] == {
        "name": "ci",
        "requests": 2,
        "input_tokens": 40,
        "output_tokens": 600,
        "estimated": 0,
        "failed": 0,
        "aborted": 0,
        "mean_duration_ms": 1500,
        "mean_first_byte_ms": 250,
    }
    assert by_key[OTHER_KEY]["name"] is None
    assert by_key[OTHER_KEY]["failed"] == 1
    llama = "registry.ollama.ai/library/llama3.1:latest"
    assert set(await groups("--by", "model")) == {llama, "h/n/m:t", None}
    assert set(await groups("--by", "model", "--model", "Llama3.1")) == {llama}
    assert set(await groups("--by", "owner", "--key", "ci")) == {"someone", "b"}
    assert set(await groups("--by", "owner", "--owner", "b")) == {"b"}
    recent = await groups("--by", "day", "--since", "1h", "--key", str(key_id))
    assert [group["requests"] for group in recent.values()] == [1]
    assert len(await groups("--by", "day")) == 2


async def test_usage_is_shown_to_people(
    key_id: UUID, database_url: str, tmp_path: Path
) -> None:
    env = {"AUTHZ_DATABASE_URL": database_url}
    ended = await authz("usage", "--since", "7d", cwd=tmp_path, env=env)
    lines = [line.split() for line in ended.out.splitlines()]
    assert lines[0][:4] == ["KEY", "NAME", "REQUESTS", "INPUT"]
    assert [str(key_id), "ci", "1", "20", "300"] in [line[:5] for line in lines]
    assert [OTHER_KEY, "-", "1"] in [line[:3] for line in lines]
    for words, status in (
        (("--key", "nobody"), 1),
        (("--by", "endpoint"), 2),
        (("--model", "a b"), 2),
        (("--since", "x"), 2),
    ):
        refused = await authz("usage", *words, cwd=tmp_path, env=env)
        assert (refused.status, refused.out) == (status, "")
        assert refused.err.count("\n") == 1


async def _age_ids(url: str) -> None:
    async with connected(url) as connection:
        await connection.execute(
            "UPDATE usage_requests SET at = at - interval '61 minutes'"
        )


def _dropped(registry: CollectorRegistry, reason: str) -> float | None:
    name = "authz_usage_dropped_total"
    return registry.get_sample_value(name, {"reason": reason})
