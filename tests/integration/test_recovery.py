"""Lines that break in ways of their own, and what one replica does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.failing import Replica, Site, replica, running_site, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BUSY_S = 2.0  # what a busy machine may add to a bound
NOTICED_S = 1.0  # a heartbeat every 0.5 s, which waits as long
MAX_STALE_S = 2


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with running_site(tmp_path_factory.mktemp("recovery")) as site:
        yield site


@pytest.fixture(scope="module")
async def pair(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Replica, Replica]]:
    logs = tmp_path_factory.mktemp("pair")
    short = {"AUTHZ_CACHE_TTL_S": "1", "AUTHZ_MAX_STALE_S": str(MAX_STALE_S)}
    async with (
        replica(site, logs / "one") as one,
        replica(site, logs / "other", **short) as other,
    ):
        yield one, other


async def refused_within(replica: Replica, key: str, seconds: float) -> float:
    """Wait until a revoked key is a 401; return the seconds that it took."""

    async def is_refused() -> bool:
        return await replica.status(key) == 401

    return await until(is_refused, seconds + BUSY_S)


async def test_connections_that_are_open_at_one_end_only_are_noticed(
    site: Site, pair: tuple[Replica, Replica]
) -> None:
    """No end is told, as when a firewall forgets: nothing comes back any more."""
    one, _ = pair
    known, revoked, unknown = [await site.new_key() for _ in range(3)]
    for key in (known, revoked):
        assert await one.status(key) == 200
    one.to_postgres.strand()
    await site.revoke(revoked)
    await refused_within(one, revoked, 2 * NOTICED_S)
    assert await one.status(known) == 200

    async def is_found() -> bool:
        status = await one.status(unknown)
        assert status in {200, 503}
        return status == 200

    await until(is_found, NOTICED_S + BUSY_S)


async def test_a_change_while_nobody_listened_is_in_force_when_the_line_is_back(
    site: Site, pair: tuple[Replica, Replica]
) -> None:
    one, _ = pair
    key = await site.new_key()
    assert await one.status(key) == 200
    one.to_postgres.cut()
    await site.revoke(key)
    assert await one.status(key) == 200
    one.to_postgres.mend()
    await refused_within(one, key, NOTICED_S)


async def test_a_replica_that_is_cut_off_ends_a_revoked_key_when_it_is_too_old(
    site: Site, pair: tuple[Replica, Replica]
) -> None:
    one, cut_off = pair
    key = await site.new_key()
    assert [await one.status(key), await cut_off.status(key)] == [200, 200]
    cut_off.to_postgres.cut()
    cut_off.to_redis.cut()
    try:
        await site.revoke(key)
        await refused_within(one, key, NOTICED_S)

        async def is_too_old() -> bool:
            status = await cut_off.status(key)
            assert status in {200, 503}
            return status == 503

        await until(is_too_old, MAX_STALE_S + BUSY_S)
    finally:
        cut_off.to_postgres.mend()
        cut_off.to_redis.mend()
    await refused_within(cut_off, key, NOTICED_S)


async def test_a_revoked_key_does_not_come_back_with_a_redis_that_slept(
    site: Site, pair: tuple[Replica, Replica]
) -> None:
    """Redis still has the old record: the revocation could not reach it."""
    one, other = pair
    key = await site.new_key()
    assert [await one.status(key), await other.status(key)] == [200, 200]
    for line in site.redis.lines:
        line.cut()
    await site.revoke(key)
    for replica_ in pair:
        await refused_within(replica_, key, NOTICED_S)
    for line in site.redis.lines:
        line.mend()
    for line in site.postgres.lines:
        line.cut()
    try:
        for replica_ in pair:
            assert await replica_.status(key) != 200
    finally:
        for line in site.postgres.lines:
            line.mend()
