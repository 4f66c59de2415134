"""What is measured against what: each subject is an Envoy with a service behind it.

Subjects of one measure differ in one thing only, and share all the rest.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.listeners import key_check_alone, unbounded, without_script
from benchmarks.lockstep import Upstream
from benchmarks.parts import starting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from benchmarks.parts import Proxy

FLOOR = "floor"
GATEWAY = "gateway"
NO_SCRIPT = "without script"
KEY_CHECK = "key check alone"


@dataclass(frozen=True, slots=True)
class Subjects:
    """What runs, by name; ``workplace`` is private and has the file ``key``."""

    proxies: dict[str, Proxy]
    workplace: Path

    def key(self) -> str:
        """Return the key that may do what the loads ask for."""
        return (self.workplace / "key").read_text()

    @property
    def envoy_version(self) -> str:
        """The version that all of them have."""
        return next(iter(self.proxies.values())).version


@asynccontextmanager
async def request_subjects() -> AsyncIterator[Subjects]:
    """Run one listener.yaml twice, before services of different thoroughness.

    Raises ConfigError, ChildDied.
    """
    async with starting() as parts:
        await parts.constant_upstream()
        proxies = {
            FLOOR: await parts.envoy(FLOOR, await parts.floor(), unbounded),
            GATEWAY: await parts.envoy(GATEWAY, await parts.gateway(), unbounded),
        }
        yield Subjects(proxies, parts.workplace)


@asynccontextmanager
async def stream_subjects() -> AsyncIterator[tuple[Subjects, Upstream]]:
    """Run listener.yaml, and parts of it, before one service and one upstream.

    Raises ConfigError, ChildDied.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(_one_core())
        parts = await stack.enter_async_context(starting())
        upstream = await stack.enter_async_context(Upstream().listening(parts.upstream))
        service = await parts.gateway()
        proxies = {
            GATEWAY: await parts.envoy("whole", service, unbounded),
            NO_SCRIPT: await parts.envoy("script", service, without_script),
            KEY_CHECK: await parts.envoy("check", service, key_check_alone),
        }
        yield Subjects(proxies, parts.workplace), upstream


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep this process, and what it starts, on one core for the length of the block.

    Nothing of a stream in lockstep runs at once, and waking another core costs
    several times what is to be seen, and never twice the same.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
