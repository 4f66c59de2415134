"""PostgreSQL's primary is lost and its standby takes over."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests import rows
from tests.chaos.replicas import change, load, replica_on
from tests.chaos.standby import either, running_standby
from tests.failing import running_site
from tests.gateway import Stores
from tests.rows import assert_row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"]
)
async def test_a_standby_that_is_promoted_takes_the_place_of_a_primary(
    number: signal.Signals, tmp_path: Path, recovered: Callable[[str, float], None]
) -> None:
    async with (
        running_site(tmp_path) as site,
        running_standby(
            site.postgres.url, tmp_path / "postgres", tmp_path / "standby"
        ) as standby,
        replica_on(
            Stores(either(site.postgres.url, standby.url), site.redis.url),
            tmp_path / "replica",
        ) as replica,
    ):
        fresh = [await site.new_key() for _ in range(5)]
        revoked, refused, unseen = [await site.new_key() for _ in range(3)]
        for key in (*fresh, revoked, refused):
            assert await replica.status(key) == 200

        await site.revoke(refused)
        await change(replica, refused, 200, 401)
        await standby.catch_up(site.postgres.url)
        try:
            async with load(replica, fresh) as statuses:
                site.postgres.signal(number)
                answer, _ = await replica.ask(unseen)
                assert_row(answer, rows.UNAVAILABLE)
                assert await replica.status(refused) == 401
                await standby.promote()
                recovered(
                    "keys are found, since the promotion",
                    await change(replica, unseen, 503, 200),
                )
                site.postgres.url = standby.url
                await site.revoke(revoked)
                heard = await change(replica, revoked, 200, 401)
                recovered("revocations are heard", heard)
                assert await replica.status(await site.new_key()) == 200
                assert await replica.status(refused) == 401
        finally:
            # One that hangs would not stop, and come back as a second primary.
            site.postgres.signal(signal.SIGKILL)
        assert set(statuses) == {200}, statuses
