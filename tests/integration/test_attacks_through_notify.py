"""Attacks by NOTIFY, which any role of the database may send, in floods and forged."""

from __future__ import annotations

import asyncio
import json
import resource
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from authz.adapters.postgres import connected
from authz.adapters.postgres_changes import CHANNEL
from tests.failing import until
from tests.lookups import BUSY_S, all_hear, repeated, site_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from tests.lookups import Site
    from tests.services import Databases

NOTIFY = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"
FLOODS, PAYLOADS = 4, 5000
MOST_GROWTH = 32 * 1024 * 1024


@pytest.fixture
async def site(database_url: str, redis_url: str) -> AsyncIterator[Site]:
    async with site_on(database_url, redis_url) as site:
        yield site


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def absurd_payloads(keys: Sequence[bytes]) -> list[str]:
    """Make payloads, most of which look like those of a change."""
    digests = [*(key.hex() for key in keys), secrets.token_hex(32)]
    shapes = [
        *("", " ", "x" * 7999, "\x01\x7f" * 3000, "\N{PILE OF POO}" * 1999),
        *(shape for d in digests for shape in (d.upper(), d[1:], d + "0", f"{d}\n")),
        *(json.dumps({"digest": digest, "revoked": False}) for digest in digests),
        *("\uff11" * 64, "'; DROP TABLE keys; --", "authz_keys", "0" * 64),
        *digests,
    ]
    fill = [secrets.token_hex(32) for _ in range(PAYLOADS - len(shapes) - 200)]
    long = [secrets.token_hex(3999) for _ in range(200)]
    return [*shapes, *fill, *long]


async def forge(url: str, payloads: Sequence[str]) -> None:
    async with connected(url) as anybody:
        await anybody.execute("SET statement_timeout = 0")
        await anybody.fetch(NOTIFY, CHANNEL, payloads)


async def test_a_flood_of_forged_notifications_costs_neither_right_answers_nor_memory(
    site: Site, server: Databases, record_property: Callable[[str, object], None]
) -> None:
    good, bad = await site.new_key("good"), await site.new_key("bad")
    unknown = secrets.token_bytes(32)
    async with server.role(site.database_url) as anybody, site.replica() as replica:
        assert not (await replica.find(bad.digest)).revoked

        async def ask() -> None:
            assert await replica.lookup.find([unknown]) is None
            assert (await replica.find(good.digest)).name == "good"
            await asyncio.sleep(0)

        async def refused() -> bool:
            return (await replica.find(bad.digest)).revoked

        async def flood() -> None:
            await forge(anybody, payloads)

        payloads = absurd_payloads([good.digest, bad.digest])
        await flood()
        await all_hear([replica], good.digest)
        before = resident_bytes()  # what is kept is full
        async with repeated(ask), repeated(flood):
            await all_hear([replica], good.digest)
            await site.keys.revoke("bad")
            record_property("refused after", await until(refused, BUSY_S))
            for _ in range(FLOODS):
                await all_hear([replica], good.digest)
        assert resident_bytes() - before < MOST_GROWTH
        assert (await replica.find(good.digest)).name == "good"


async def test_forged_notifications_of_a_key_cost_a_look_up_each_at_the_most(
    site: Site, server: Databases
) -> None:
    new = await site.new_key("key")
    async with server.role(site.database_url) as anybody, site.replica() as replica:
        row = await replica.find(new.digest)
        before = replica.answered_by("postgres")
        for _ in range(20):
            await forge(anybody, [new.digest.hex()])
            for _ in range(10):
                assert await replica.find(new.digest) == row
        await all_hear([replica], new.digest)
        assert replica.answered_by("postgres") - before <= 20
