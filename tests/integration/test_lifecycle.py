"""From a cold start to SIGTERM: when a replica is ready, and that nothing is lost."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING

import pytest

from authz.core.credential import mint
from tests import rows
from tests.failing import Replica, Site, replica, running_site, until
from tests.rows import assert_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.raw import Answer

BUSY_S = 5.0  # Python starts anew here, on a machine that may be busy
CLIENTS, ANSWERS_BEFORE = 8, 50
UNKNOWN = mint(b"nobody has this one".ljust(32))


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with running_site(tmp_path_factory.mktemp("lifecycle")) as site:
        yield site


@pytest.fixture(scope="module")
async def one(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replica]:
    logs = tmp_path_factory.mktemp("one") / "logs"
    async with replica(site, logs, AUTHZ_CACHE_TTL_S="0") as one:
        yield one


async def test_a_cold_start_without_redis_is_ready_and_serves(
    site: Site, one: Replica
) -> None:
    key = await site.new_key()
    await one.end_authz(signal.SIGTERM)
    one.to_redis.cut()
    await one.start_authz()
    assert await one.status(key) == 200
    one.to_redis.mend()
    before = await one.lookups("redis_error")
    assert before > 0

    async def uses_redis() -> bool:
        before = await one.lookups("redis_error")
        assert await one.status(await site.new_key()) == 200
        return await one.lookups("redis_error") == before

    await until(uses_redis, BUSY_S)


@pytest.mark.parametrize("fault", ["cut", "hang"])
async def test_a_cold_start_without_postgres_waits_and_gets_ready_by_itself(
    site: Site, one: Replica, fault: str
) -> None:
    key = await site.new_key()
    await one.end_authz(signal.SIGTERM)
    getattr(one.to_postgres, fault)()
    starting = asyncio.create_task(one.start_authz())

    async def lives() -> bool:
        return await one.probe("/livez") == 200

    await until(lives, BUSY_S)
    assert await one.probe("/readyz") == 503
    assert_row((await one.ask(key))[0], rows.UNAVAILABLE)
    one.to_postgres.mend()
    await starting
    assert await one.probe("/readyz") == 200
    assert await one.status(key) == 200


async def test_a_replica_that_runs_stays_ready_and_alive_without_its_stores(
    site: Site, one: Replica
) -> None:
    key = await site.new_key()
    assert await one.status(key) == 200
    one.to_postgres.cut()
    one.to_redis.cut()
    try:
        assert await one.status(key) == 200
        assert [await one.probe("/readyz"), await one.probe("/livez")] == [200, 200]
    finally:
        one.to_postgres.mend()
        one.to_redis.mend()


async def test_sigterm_under_load_loses_no_request(site: Site, one: Replica) -> None:
    keys = [await site.new_key() for _ in range(CLIENTS)]
    answers: list[Answer] = []
    enough = asyncio.Event()
    ended = asyncio.Event()

    async def load(key: str) -> None:
        while not ended.is_set():
            answers.append((await one.ask(key))[0])
            if len(answers) >= ANSWERS_BEFORE:
                enough.set()

    async with asyncio.TaskGroup() as clients:
        for key in keys:
            clients.create_task(load(key))
        await enough.wait()
        assert {answer.status for answer in answers} == {200}
        assert await one.end_authz(signal.SIGTERM) == 0
        ended.set()
    for answer in answers:
        if answer.status != 200:
            assert_row(answer, rows.UNAVAILABLE)
    await one.start_authz()


async def test_a_request_that_is_being_decided_gets_its_verdict_after_sigterm(
    site: Site, one: Replica
) -> None:
    """PostgreSQL hangs, so the verdict on a key seen before takes half a second."""
    # Either would make it forget what it has seen, if it came later.
    await until(one.listens, BUSY_S)
    heard = await one.heard()
    key = await site.new_key()

    async def knows_of_the_key() -> bool:
        return await one.heard() > heard

    await until(knows_of_the_key, BUSY_S)
    assert await one.status(key) == 200
    one.to_redis.hang()
    one.to_postgres.hang()
    before = await one.lookups("redis_error")
    asking = asyncio.create_task(one.ask(key))

    async def is_being_decided() -> bool:
        return await one.lookups("redis_error") > before

    try:
        await until(is_being_decided, BUSY_S)
        ending = asyncio.create_task(one.end_authz(signal.SIGTERM))
        answer, _ = await asking
        assert answer.status == 200
    finally:
        one.to_redis.mend()
        one.to_postgres.mend()
    assert await ending == 0
    await one.start_authz()


async def test_what_is_denied_or_undecided_is_one_line_with_id_and_reason(
    site: Site, one: Replica
) -> None:
    revoked, undecided = [await site.new_key() for _ in range(2)]
    await site.revoke(revoked)
    asked = {"key_unknown": UNKNOWN, "key_revoked": revoked}
    answers = {reason: (await one.ask(key))[0] for reason, key in asked.items()}
    one.to_postgres.cut()
    try:
        answers["undecided"], _ = await one.ask(undecided)
    finally:
        one.to_postgres.mend()
    log = (one.gateway.logs / "authz.log").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    for reason, answer in answers.items():
        request_id = answer.header("x-request-id")
        denials = [line for line in lines if line.get("request_id") == request_id]
        assert [line["reason"] for line in denials if "reason" in line] == [reason]
