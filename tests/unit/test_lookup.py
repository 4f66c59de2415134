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
    misses_per_s: float = 1_000_000

    def __post_init__(self) -> None:
        freshness = Freshness(
            timedelta(seconds=TTL_S),
            timedelta(seconds=MAX_STALE_S),
            self.size,
            self.misses_per_s,
        )
        metrics = Metrics(CollectorRegistry())
        self.lookup = Lookup(self.store, self.cache, freshness, self.clock, metrics)
        self.lookup.listening()

    async def add_key(self, name: str = "key") -> bytes:
        new, _ = issue(name, models=["*"], scopes=["read"], expires_at=None)
        await self.store.create(new)
        return new.digest

    async def find(self, digest: bytes) -> Key:
        key = await self.lookup.find([digest])
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
    assert await Replica().lookup.find([b"?"]) is None


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
    replica.lookup.changed(digest)
    assert (await replica.find(digest)).revoked


async def test_a_look_up_that_a_change_overtakes_is_not_remembered() -> None:
    replica = Replica()
    digest = await replica.add_key()
    replica.store.gate = asyncio.Event()
    overtaken = asyncio.create_task(replica.find(digest))
    await replica.store.reached.wait()
    await replica.store.revoke("key")
    replica.lookup.changed(digest)
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
    replica.lookup.changed(digest)
    replica.cache.entries[digest] = old
    assert (await replica.find(digest)).revoked
    assert replica.cache.entries[digest].key.revoked


async def test_after_a_change_an_old_copy_does_not_help_over_an_outage() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    old = replica.cache.entries[digest]
    replica.lookup.changed(digest)
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
        replica.lookup.changed(bytes([number]))
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
    replica.lookup.changed(digest)


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
        await replica.lookup.find([b"?"])


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


async def test_an_unknown_key_is_asked_for_once_in_five_seconds() -> None:
    replica = Replica()
    for seconds in (0, 4.9, 0.1):
        replica.clock.forward(seconds)
        assert await replica.lookup.find([b"?"]) is None
    assert replica.store.asked == 2


async def test_a_key_that_is_made_after_it_was_unknown_works_at_once() -> None:
    replica = Replica()
    new, _ = issue("key", models=["*"], scopes=["read"], expires_at=None)
    assert await replica.lookup.find([new.digest]) is None
    await replica.store.create(new)
    replica.lookup.changed(new.digest)
    assert (await replica.find(new.digest)).name == "key"


async def test_while_notifications_may_be_lost_unknown_keys_are_asked_for() -> None:
    replica = Replica()
    new, _ = issue("key", models=["*"], scopes=["read"], expires_at=None)
    assert await replica.lookup.find([new.digest]) is None
    replica.lookup.deaf()
    await replica.store.create(new)
    assert (await replica.find(new.digest)).name == "key"


async def test_unknown_keys_are_remembered_in_bounded_number() -> None:
    replica = Replica()
    for number in range(10_001):
        await replica.lookup.find([number.to_bytes(4)])
    await replica.lookup.find([(10_000).to_bytes(4)])
    assert replica.store.asked == 10_001
    await replica.lookup.find([(0).to_bytes(4)])
    assert replica.store.asked == 10_002


async def test_a_key_is_found_and_remembered_under_any_of_its_digests() -> None:
    replica = Replica()
    digest = await replica.add_key()
    found = await replica.lookup.find([b"new pepper", digest])
    assert found is not None
    assert await replica.lookup.find([b"new pepper", digest]) == found
    assert replica.store.asked == 1
    other = Replica(store=MemoryKeys(broken=True), cache=replica.cache)
    assert await other.lookup.find([b"new pepper", digest]) == found


async def test_a_change_counts_under_whatever_digest_the_key_is_stored() -> None:
    replica = Replica()
    digest = await replica.add_key()
    digests = [b"new pepper", digest]
    replica.store.gate = asyncio.Event()
    overtaken = asyncio.create_task(replica.lookup.find(digests))
    await replica.store.reached.wait()
    await replica.store.revoke("key")
    replica.lookup.changed(digest)
    replica.store.gate.set()
    await overtaken
    found = await replica.lookup.find(digests)
    assert found is not None
    assert found.revoked


async def test_a_slow_reader_that_puts_an_old_row_back_is_not_believed() -> None:
    """Not even after the new row was read, and forgotten for want of room."""
    replica = Replica(size=1)
    digest = await replica.add_key()
    await replica.find(digest)
    old = replica.cache.entries[digest]
    await replica.store.revoke("key")
    replica.lookup.changed(digest)
    assert (await replica.find(digest)).revoked
    await replica.find(await replica.add_key("other"))
    replica.cache.entries[digest] = old
    assert (await replica.find(digest)).revoked


async def test_a_replica_believes_nothing_from_before_it_listened() -> None:
    first = Replica()
    digest = await first.add_key()
    await first.find(digest)
    first.clock.forward(1)
    second = Replica(store=first.store, cache=first.cache, clock=first.clock)
    await first.store.revoke("key")
    assert (await second.find(digest)).revoked


async def test_a_record_from_the_future_is_not_fresh() -> None:
    """A replica whose clock is ahead must not make its records live longer."""
    ahead = Replica()
    ahead.clock.forward(60)
    digest = await ahead.add_key()
    await ahead.find(digest)
    replica = Replica(store=ahead.store, cache=ahead.cache)
    await replica.find(digest)
    assert replica.store.asked == 2


async def test_a_change_is_dropped_from_redis_once_redis_is_back() -> None:
    replica = Replica()
    digest = await replica.add_key()
    await replica.find(digest)
    replica.cache.broken = True
    replica.lookup.changed(digest)
    await asyncio.sleep(0)
    replica.cache.broken = False
    async with asyncio.timeout(10):
        assert await replica.cache.drops.get() == [digest]
    assert not replica.cache.entries


async def test_at_the_end_redis_is_left_alone() -> None:
    replica = Replica(cache=MemoryCache(broken=True))  # a drop would be tried again
    before = asyncio.all_tasks()
    replica.lookup.changed(b"?")
    await replica.lookup.aclose()
    assert asyncio.all_tasks() <= before


async def test_a_flood_of_changes_drops_in_bounded_batches() -> None:
    replica = Replica(size=2000)
    for number in range(2001):
        replica.lookup.changed(number.to_bytes(32))
    async with asyncio.timeout(10):
        batches = [await replica.cache.drops.get() for _ in range(4)]
    assert [len(batch) for batch in batches] == [500] * 4


async def test_a_source_of_unknown_keys_gets_its_share_and_then_no_401() -> None:
    replica = Replica(misses_per_s=10)
    for number in range(10):
        assert await replica.lookup.find([bytes([number])], "192.0.2.1") is None
    with pytest.raises(StoreUnavailable):
        await replica.lookup.find([b"?"], "192.0.2.1")
    assert replica.store.asked == 10
    replica.clock.forward(0.1)
    assert await replica.lookup.find([b"?"], "192.0.2.1") is None


async def test_a_site_with_many_networks_gets_the_share_of_four() -> None:
    replica = Replica(misses_per_s=10)
    for number in range(40):
        source = f"2001:db8:7:{number}::1"
        assert await replica.lookup.find([bytes([number])], source) is None
    with pytest.raises(StoreUnavailable):
        await replica.lookup.find([b"?"], "2001:db8:7:ffff::1")
    assert replica.store.asked == 40
    assert await replica.lookup.find([b"?"], "2001:db8:8::1") is None


async def test_a_good_key_from_a_noisy_address_is_never_unknown() -> None:
    replica = Replica(misses_per_s=1)
    warm, cold, announced = [await replica.add_key(name) for name in "wca"]
    await replica.find(warm)
    await replica.lookup.find([b"?"], "192.0.2.1")
    with pytest.raises(StoreUnavailable):
        await replica.lookup.find([cold], "192.0.2.1")
    assert await replica.lookup.find([warm], "192.0.2.1") is not None
    replica.lookup.changed(warm)
    replica.lookup.changed(announced)
    assert await replica.lookup.find([warm], "192.0.2.1") is not None
    assert await replica.lookup.find([announced], "192.0.2.1") is not None
    assert await replica.lookup.find([cold], "192.0.2.2") is not None


async def test_good_keys_cost_their_source_nothing() -> None:
    replica = Replica(misses_per_s=1)
    digests = [await replica.add_key(str(number)) for number in range(50)]
    for digest in digests:
        assert await replica.lookup.find([digest], "192.0.2.1") is not None


async def test_a_flood_of_unknown_keys_reaches_postgres_in_a_bounded_number() -> None:
    replica = Replica(misses_per_s=10)
    floods = (replica.lookup.find([n.to_bytes(4)], "192.0.2.1") for n in range(10_000))
    answers = await asyncio.gather(*floods, return_exceptions=True)
    assert replica.store.asked <= 10 + 4
    assert {type(answer) for answer in answers} == {type(None), StoreUnavailable}
    cold = await replica.add_key()
    assert await replica.lookup.find([cold], "192.0.2.2") is not None


async def test_all_unknown_keys_together_ask_in_bounded_number_at_once() -> None:
    replica = Replica()
    replica.store.gate = asyncio.Event()
    asking = [
        asyncio.create_task(replica.lookup.find([n.to_bytes(4)], f"192.0.2.{n % 250}"))
        for n in range(1005)
    ]
    done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    assert replica.store.asked == 4
    (beyond,) = done
    assert isinstance(beyond.exception(), StoreUnavailable)
    replica.store.gate.set()
    await asyncio.wait(asking)


async def test_a_key_that_waits_too_long_for_others_is_undecided() -> None:
    replica = Replica()
    replica.store.gate = asyncio.Event()
    asking = [
        asyncio.create_task(replica.lookup.find([bytes([number])]))
        for number in range(5)
    ]
    done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in done] == [StoreUnavailable]
    replica.store.gate.set()
    await asyncio.wait(asking)


async def test_a_clock_set_back_makes_nothing_fresh_that_was_missed() -> None:
    replica = Replica()
    digest = await replica.add_key()
    assert await replica.find(digest) is not None
    replica.lookup.deaf()
    await replica.store.revoke("key")
    replica.clock.forward(-5)
    replica.lookup.listening()
    replica.clock.forward(6)
    replica.cache.entries.clear()
    key = await replica.find(digest)
    assert key is not None
    assert key.revoked
