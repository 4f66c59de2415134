"""Replicas on any stores, and good keys that are asked for all the time."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from tests.failing import POLL_S, Replica, until
from tests.gateway import Stores, own_gateway
from tests.proxy import Line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from tests.failing import Site

WITHIN_S = 10.0


@asynccontextmanager
async def replica_on(stores: Stores, logs: Path) -> AsyncIterator[Replica]:
    """Run a gateway on these stores, no line between, until the block ends."""
    logs.mkdir()
    async with own_gateway(stores, logs) as gateway, AsyncExitStack() as run:
        unused = Line(stores.database_url), Line(stores.redis_url)
        yield Replica(gateway, *unused, run)


@asynccontextmanager
async def load(replica: Replica, keys: Sequence[str]) -> AsyncIterator[Counter[int]]:
    """Ask for the keys in turn until the block ends; yield how often what came."""
    statuses: Counter[int] = Counter()
    ended = asyncio.Event()

    async def ask_on() -> None:
        while not ended.is_set():
            for key in keys:
                statuses[await replica.status(key)] += 1
                await asyncio.sleep(POLL_S)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask_on())
        try:
            yield statuses
        finally:
            ended.set()


async def change(replica: Replica, key: str, before: int, after: int) -> float:
    """Wait until a key gets another status; return the seconds that it took.

    Until then it gets the one before, and no third one.
    """

    async def has_changed() -> bool:
        status = await replica.status(key)
        assert status in {before, after}
        return status == after

    return await until(has_changed, WITHIN_S)


async def keys(site: Site, count: int) -> list[str]:
    """Create some keys."""
    return [await site.new_key() for _ in range(count)]


async def served_from(source: str, replica: Replica, candidates: list[str]) -> float:
    """Ask for one key after the other, until an answer comes from this source.

    All are served. A busy machine may answer too late for Redis to be believed.
    """

    async def is_source() -> bool:
        assert candidates, f"none was found in {source}"
        before = await replica.lookups(source)
        assert await replica.status(candidates.pop()) == 200
        return await replica.lookups(source) == before + 1

    return await until(is_source, WITHIN_S)


async def uses_redis(
    replica: Replica,
    new_key: Callable[[], Awaitable[str]],
    names: Callable[[str], Awaitable[Sequence[object]]],
) -> float:
    """Wait until one of the new keys that the replica is asked for is in Redis.

    ``names`` returns the names in Redis that fit a pattern.
    """
    asked: list[str] = []

    async def has_put_one() -> bool:
        asked.append(await new_key())
        assert await replica.status(asked[-1]) == 200
        return any([await names(f"*{digest(key).hex()}") for key in asked])

    return await until(has_put_one, WITHIN_S)


def digest(key: str) -> bytes:
    """Return what a key is known by in the stores."""
    return hashlib.sha256(key.encode()).digest()
