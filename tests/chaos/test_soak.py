"""Minutes of all that clients do: nothing is lost, counted twice, kept or piled up."""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from authz.core.credential import ENTROPY_BYTES, mint
from authz.core.limits import LEASE_S
from benchmarks.accounts import Key, running_gateway
from benchmarks.processes import watching

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.accounts import Gateway, Visit

pytestmark = pytest.mark.chaos

SECONDS = 600
WARM_UP_S = 120
LINES_PER_S = 5
LONGEST = 100  # lines
LONGER_THAN_A_LEASE = (LEASE_S + 15) * LINES_PER_S
LIMITS = "concurrency=100,rpm=100000,tpm=100000000,budget=1000000000/day"
CHANCE = random.Random(2026)  # noqa: S311 - the same crowd every time
# An allocator may keep some of what was freed.
MOST_GROWTH_KB = 16 * 1024


@dataclass
class Crowd:
    """Clients that ask again and again until their time is over."""

    gateway: Gateway
    until: float
    visits: list[Visit] = field(default_factory=list)
    knocks: list[Visit] = field(default_factory=list)

    async def one_after_another(self, ask: Callable[[], Awaitable[Visit]]) -> None:
        while self.is_open:
            visit = await ask()
            self.visits.append(visit)
            await visit.client.ended.wait()
            await asyncio.sleep(CHANCE.random())

    async def hold_the_only_slot_of(self, key: Key) -> None:
        """Run longer than a lease; who knocks meanwhile is to be refused.

        But for the moments when a busy machine has Redis answer too late.
        """
        while self.is_open:
            holder = await self.gateway.visit(key, LONGER_THAN_A_LEASE)
            self.visits.append(holder)
            while holder.client.heard.lines < LONGER_THAN_A_LEASE - 5 * LINES_PER_S:
                await asyncio.sleep(1 / LINES_PER_S)
                if holder.client.heard.lines:
                    knock = await self.gateway.visit(key, 1, expected=(429, 200))
                    self.visits.append(knock)
                    self.knocks.append(knock)
                    await knock.client.ended.wait()
            await holder.client.ended.wait()

    @property
    def is_open(self) -> bool:
        return asyncio.get_running_loop().time() < self.until


def some(most: int) -> int:
    return CHANCE.randint(1, most)


async def run(crowd: Crowd) -> None:
    """Have all of them ask; leavers have keys of their own, for their tokens."""
    visit = crowd.gateway.visit
    free, limited = await crowd.gateway.key(), await crowd.gateway.key(LIMITS)
    left, left_limited = await crowd.gateway.key(), await crowd.gateway.key(LIMITS)
    of_one_slot = [await crowd.gateway.key("concurrency=1") for _ in range(3)]
    stranger = Key("", mint(secrets.token_bytes(ENTROPY_BYTES)))
    kinds: dict[Callable[[], Awaitable[Visit]], int] = {
        lambda: visit(free, some(LONGEST)): 50,
        lambda: visit(limited, some(LONGEST)): 50,
        lambda: visit(left, LONGEST, leave_after=some(LONGEST // 2)): 25,
        lambda: visit(left_limited, LONGEST, leave_after=some(LONGEST // 2)): 25,
        lambda: visit(stranger, 1, expected=[401]): 5,
        lambda: visit(limited, 1, model="mistral", expected=[403]): 5,
    }
    async with asyncio.TaskGroup() as clients:
        for ask, number in kinds.items():
            for _ in range(number):
                clients.create_task(crowd.one_after_another(ask))
        for key in of_one_slot:
            clients.create_task(crowd.hold_the_only_slot_of(key))


async def test_what_a_crowd_does_for_minutes_is_counted_once_and_leaves_nothing() -> (
    None
):
    loop = asyncio.get_running_loop()
    async with running_gateway(LINES_PER_S) as gateway:
        async with watching(gateway.pids) as watched, asyncio.timeout(2 * SECONDS):
            crowd = Crowd(gateway, loop.time() + SECONDS)
            warmed_up = loop.call_later(WARM_UP_S, watched.warmed_up)
            await run(crowd)
            assert warmed_up.when() < loop.time()
        problems = await gateway.problems(crowd.visits)
        unshared = await gateway.counter("authz_limits_unshared_total")
    assert not problems
    assert sum(knock.was_allowed for knock in crowd.knocks) <= unshared
    for name in ("authz", "envoy"):
        memory = watched.memory[name]
        assert max(memory) - memory[0] < MOST_GROWTH_KB, (name, memory)
