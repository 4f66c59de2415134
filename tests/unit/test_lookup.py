"""Where a key is looked for, how long that holds, and what holds in a failure."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from authz.errors import StoreUnavailable
from authz.issuing import issue
from authz.lookup import Freshness, Lookup
from authz.metrics import Metrics
from tests.fakes import FakeClock, MemoryCache, MemoryKeys

if TYPE_CHECKING:
    from authz.core.model import Key

TTL_S = 30
MAX_STALE_S = 300


@dataclass
class Replica:
    """A Lookup among stores that it may share with others."""

    store: MemoryKeys = field(default_factory=MemoryKeys)
    cache: MemoryCache = field(default_factory=MemoryCache)
    clock: FakeClock = field(default_factory=FakeClock)
    size: int = 100

    def __post_init__(self) -> None:
        freshness = Freshness(
            timedelta(seconds=TTL_S), timedelta(seconds=MAX_STALE_S), self.size
        )
        metrics = Metrics(CollectorRegistry())
        self.lookup = Lookup(self.store, self.cache, freshness, self.clock, metrics)
        self.lookup.listening()

    async def add_key(self, name: str = "key") -> bytes:
        new, _ = issue(name, models=["*"], scopes=["read"], expires_at=None)
        await self.store.create(new)
        return new.digest

    async def find(self, digest: bytes) -> Key:
        key = await self.lookup.find(digest)
        assert key is not None
        return key


async def test_a_known_key_is_asked_for_once_within_the_ttl() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    replica.clock.forward(TTL_S - 1)
    await replica.find(digest)
    assert replica.store.asked == 1


async def test_after_the_ttl_postgres_is_asked_again() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    replica.clock.forward(TTL_S)
    await replica.find(digest)
    assert replica.store.asked == 2


async def test_an_unknown_key_is_none() -> None:
    assert await Replica().lookup.find(b"?") is None


async def test_a_second_replica_takes_the_key_from_redis() -> None:
    first = Replica()
    second = Replica(store=MemoryKeys(broken=True), cache=first.cache)
    digest = await first.add_key()
    await first.find(digest)
    await second.find(digest)
    assert second.store.asked == 0


async def test_a_change_is_read_at_once() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    await replica.store.revoke("key")
    await replica.lookup.changed(digest)
    assert (await replica.find(digest)).revoked


async def test_a_look_up_that_a_change_overtakes_is_not_remembered() -> None:
    replica = Replica()
    digest = await replica.add_key()
    replica.store.gate = asyncio.Event()
    overtaken = asyncio.create_task(replica.find(digest))
    await replica.store.reached.wait()
    await replica.store.revoke("key")
    await replica.lookup.changed(digest)
    replica.store.gate.set()
    assert not (await overtaken).revoked
    assert (await replica.find(digest)).revoked
    assert replica.cache.entries[digest].key.revoked


async def test_after_a_change_redis_is_not_believed_until_postgres_was_asked() -> None:
    """Another replica may put the old row back, or the drop may have failed."""
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    old = replica.cache.entries[digest]
    await replica.store.revoke("key")
    await replica.lookup.changed(digest)
    replica.cache.entries[digest] = old
    assert (await replica.find(digest)).revoked
    assert replica.cache.entries[digest].key.revoked


async def test_after_a_change_an_old_copy_does_not_help_over_an_outage() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    old = replica.cache.entries[digest]
    await replica.lookup.changed(digest)
    replica.cache.entries[digest] = old
    replica.store.broken = True
    with pytest.raises(StoreUnavailable):
        await replica.find(digest)


async def test_a_flood_of_changes_costs_bounded_memory_and_no_freshness() -> None:
    replica = Replica(size=2)
    digest = await replica.add_key()
    await replica.find(digest)
    replica.clock.forward(1)
    for number in range(3):
        await replica.lookup.changed(bytes([number]))
    await replica.find(digest)
    assert replica.store.asked == 2


async def test_look_ups_of_one_key_are_joined() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await asyncio.gather(*(replica.find(digest) for _ in range(50)))
    assert replica.store.asked == 1


async def test_a_caller_that_gives_up_does_not_take_the_answer_along() -> None:
    replica = Replica()
    digest = await replica.add_key()
    replica.store.gate = asyncio.Event()
    impatient = asyncio.create_task(replica.find(digest))
    patient = asyncio.create_task(replica.find(digest))
    await replica.store.reached.wait()
    impatient.cancel()
    replica.store.gate.set()
    assert (await patient).name == "key"


async def test_while_notifications_may_be_lost_every_request_asks() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    replica.lookup.deaf()
    await replica.find(digest)
    await replica.find(digest)
    assert replica.store.asked == 3


async def test_what_was_verified_before_a_gap_is_asked_for_after_it() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    replica.lookup.deaf()
    replica.clock.forward(1)
    replica.lookup.listening()
    await replica.find(digest)
    await replica.find(digest)
    assert replica.store.asked == 2


async def test_without_redis_postgres_decides() -> None:
    replica = Replica(cache=MemoryCache(broken=True))
    digest = await replica.add_key()
    assert (await replica.find(digest)).name == "key"
    await replica.lookup.changed(digest)


@pytest.mark.parametrize("deaf", [False, True])
async def test_without_postgres_a_known_key_holds_up_to_the_limit(deaf: bool) -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    replica.store.broken = True
    if deaf:
        replica.lookup.deaf()
    replica.clock.forward(MAX_STALE_S - 1)
    assert (await replica.find(digest)).name == "key"
    replica.clock.forward(1)
    with pytest.raises(StoreUnavailable):
        await replica.find(digest)


async def test_without_postgres_an_unknown_key_is_undecided_never_unknown() -> None:
    replica = Replica(store=MemoryKeys(broken=True))
    with pytest.raises(StoreUnavailable):
        await replica.lookup.find(b"?")


async def test_without_postgres_a_revoked_key_stays_revoked() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.store.revoke("key")
    await replica.find(digest)
    replica.store.broken = True
    replica.clock.forward(TTL_S)
    assert (await replica.find(digest)).revoked


async def test_memory_is_bounded() -> None:
    replica = Replica(size=2, cache=MemoryCache(broken=True))
    digests = [await replica.add_key(str(n)) for n in range(3)]
    for digest in [*digests, digests[2], digests[1]]:
        await replica.find(digest)
    assert replica.store.asked == 3
    await replica.find(digests[0])
    assert replica.store.asked == 4
