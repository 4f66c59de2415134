"""A flood of unknown keys, and what good keys from other addresses notice of it.

`python -m benchmarks.strangers` measures this alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import aiohttp
import click

from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.core.credential import mint
from authz.core.model import Scope
from authz.issuing import issue
from authz.local.data_dir import write_private
from authz.local.process import run_to_end, running
from benchmarks.command import outcome_of
from benchmarks.listeners import behind_a_gateway
from benchmarks.parts import starting
from benchmarks.processes import watching
from benchmarks.report import Times, document, section, times
from benchmarks.surroundings import surroundings
from benchmarks.wrk import find_wrk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from authz.adapters.postgres import Connection
    from benchmarks.parts import Parts, Proxy

OFFERED_PER_S = 10_000
SOURCES = (1, 8, 1000)
GOOD_PER_S = 50
GOOD_KEYS = 1000
PER_SOURCE_PER_S = 100  # AUTHZ_UNKNOWN_KEYS_PER_S where it is not set

_GOOD_SOURCES = 50
_UNDER_WAY = 4  # of one source, when it has had its share
_CONNECTIONS = 250
_UNKNOWN_KEYS = 100_000  # more than are sent in the 5 s that one is remembered
_LEAD_S = 1  # the flood runs before the first good key is asked for
_MORE_S = 20.0  # what wrk may take longer than it was told to send
_SCRIPT = Path(__file__).with_name("strangers.lua")
_MODELS = ("registry.ollama.ai/library/llama3.*:*",)
_BODY = {"model": "llama3.1", "messages": [{"role": "user", "content": "Hello?"}]}

_HEADER = (
    "| addresses | answered/s | of these | good keys | p50 ms | p99 ms | max ms "
    "| look-ups of unknown | bound | CPU of Envoy | of authz | load |\n"
    "|---:|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)

# A look-up is one scan of this table; noting the last use of a good key is another.
_LOOKUPS = """
SELECT coalesce(sum(seq_scan + idx_scan), 0)::int FROM pg_stat_user_tables
 WHERE relname = 'secrets'
"""
# An ended session has reported what it did.
_END_OTHERS = """
SELECT bool_and(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
   AND backend_type = 'client backend'
"""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the flood was answered, by status, and for how long it was sent."""

    statuses: dict[int, int]
    seconds: float

    @property
    def per_s(self) -> float:
        """How many were answered in a second."""
        return sum(self.statuses.values()) / self.seconds


@dataclass(frozen=True, slots=True)
class Flood:
    """What one flood did, and how good cold keys fared meanwhile."""

    sources: int
    sent: Sent
    good: Times
    good_statuses: dict[int, int]
    lookups: int
    cpu: dict[str, float]
    load_average: float

    @property
    def bound(self) -> float:
        """How many look-ups of unknown keys PostgreSQL may see."""
        at_most = PER_SOURCE_PER_S * (self.sent.seconds + 1) + _UNDER_WAY
        return self.sources * at_most


async def measure_strangers() -> list[Flood]:
    """Measure, after a run without a flood. Raises ConfigError, ChildDied."""
    find_wrk()
    return [await _measure(sources) for sources in (0, *SOURCES)]


async def _measure(sources: int) -> Flood:
    click.echo(f"strangers, flood from {sources:,} addresses", err=True)
    async with starting() as parts:
        await parts.constant_upstream()
        service = await parts.service()
        proxy = await parts.envoy("gateway", service.socket, behind_a_gateway)
        pids = {"envoy": proxy.pid, "authz": service.pids["authz"]}
        async with connected(service.database_url) as connection:
            keys = await _issue_keys(connection)
            before = await connection.fetchval(_LOOKUPS)
            async with (
                watching(pids) as watched,
                _flooding(parts, proxy, sources) as sent,
            ):
                answers = await _ask_evenly(proxy, keys)
            load = os.getloadavg()[0]
            await connection.fetchval(_END_OTHERS)
            lookups = await connection.fetchval(_LOOKUPS) - before
        good = times([seconds for seconds, _ in answers])
        statuses = Counter(status for _, status in answers)
        return Flood(sources, await sent, good, statuses, lookups, watched.cpu, load)


async def _issue_keys(connection: Connection) -> Sequence[str]:
    scopes = [Scope.INFERENCE.value]
    issued = [
        issue(f"key-{number}", models=_MODELS, scopes=scopes, expires_at=None)
        for number in range(GOOD_KEYS)
    ]
    await PostgresKeyWriter(connection).create_all([new for new, _ in issued])
    return [raw_key for _, raw_key in issued]


async def _ask_evenly(proxy: Proxy, keys: Sequence[str]) -> Sequence[tuple[float, int]]:
    """Ask once with each key, from addresses that send nothing else."""
    addresses = cycle(f"192.0.2.{number}" for number in range(_GOOD_SOURCES))
    start = perf_counter()
    tasks = []
    async with aiohttp.ClientSession(f"http://127.0.0.1:{proxy.port}") as client:
        for number, (key, address) in enumerate(zip(keys, addresses, strict=False)):
            await asyncio.sleep(start + number / GOOD_PER_S - perf_counter())
            headers = {"authorization": f"Bearer {key}", "x-forwarded-for": address}
            tasks.append(asyncio.create_task(_timed(client, headers)))
        return await asyncio.gather(*tasks)


async def _timed(
    client: aiohttp.ClientSession, headers: Mapping[str, str]
) -> tuple[float, int]:
    start = perf_counter()
    async with client.post("/api/chat", json=_BODY, headers=headers) as response:
        await response.read()
    return perf_counter() - start, response.status


@asynccontextmanager
async def _flooding(
    parts: Parts, proxy: Proxy, sources: int
) -> AsyncIterator[asyncio.Task[Sent]]:
    """Flood from another process, a little before the block and as long as it."""
    unknown = "\n".join(mint(secrets.token_bytes(32)) for _ in range(_UNKNOWN_KEYS))
    write_private(parts.workplace / "unknown", unknown)
    sent = asyncio.create_task(_flood(proxy.port, sources, parts.workplace))
    await asyncio.sleep(_LEAD_S)
    yield sent
    await sent


async def _flood(port: int, sources: int, workplace: Path) -> Sent:
    if not sources:
        return Sent({}, 1)
    seconds = _LEAD_S + GOOD_KEYS // GOOD_PER_S
    pause_ms = 1000 * _CONNECTIONS // OFFERED_PER_S
    command = (
        find_wrk(),
        *("--threads", "1"),
        *("--connections", str(_CONNECTIONS)),
        *("--duration", f"{seconds}s"),
        *("--script", str(_SCRIPT)),
        f"http://127.0.0.1:{port}/api/chat",
        *("--", str(sources), str(pause_ms)),
    )
    log = workplace / "wrk.log"
    async with running("wrk", command, log=log, cwd=workplace) as child:
        await run_to_end(child, seconds + _MORE_S)
    result = json.loads(log.read_text().splitlines()[-1])
    statuses = {int(status): number for status, number in result["statuses"].items()}
    return Sent(statuses, result["duration_us"] / 1e6)


def strangers_section(floods: Sequence[Flood]) -> str:
    """Return the table of floods."""
    return section(
        "Unknown keys",
        "\n".join([_HEADER, *(_row(flood, floods[0]) for flood in floods)]),
        f"The whole gateway; {GOOD_KEYS:,} good keys that it has never seen are "
        f"asked for at {GOOD_PER_S} a second, from {_GOOD_SOURCES} addresses that "
        "send nothing else. Beside them wrk sends well-formed keys that "
        f"do not exist, on {_CONNECTIONS} connections, each resting so long between "
        f"two requests that {OFFERED_PER_S:,} a second are offered to a gateway that "
        "answers at once. The bound is what "
        f"{PER_SOURCE_PER_S} a second and address allow; PostgreSQL counts the "
        "look-ups, less those of the run without a flood. CPU is a share of one "
        "core. All programs share the cores named above.",
    )


def _row(flood: Flood, quiet: Flood) -> str:
    good = (flood.good.p50_ms, flood.good.p99_ms, flood.good.max_ms)
    cells = (
        f"{flood.sources:,}",
        f"{flood.sent.per_s:,.0f}",
        _statuses(flood.sent.statuses),
        _statuses(flood.good_statuses),
        *(f"{figure:.1f}" for figure in good),
        f"{flood.lookups - quiet.lookups:,}",
        f"{flood.bound:,.0f}",
        *(f"{share:.0%}" for share in flood.cpu.values()),
        f"{flood.load_average:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _statuses(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{status}: {n:,}" for status, n in sorted(counts.items())) or "-"


async def _report() -> str:
    return document(surroundings(), [strangers_section(await measure_strangers())])


if __name__ == "__main__":
    outcome_of(_report())
