"""Floods of those who have no key, and what one good client notices of each.

`python -m benchmarks.floods` measures this alone.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import aiohttp
import click

from benchmarks.attackers import ATTACKS, attack
from benchmarks.command import outcome_of
from benchmarks.parts import new_key, starting
from benchmarks.processes import memory_kb, watching
from benchmarks.report import Times, document, mb, section, table, times
from benchmarks.surroundings import surroundings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.parts import Parts, Proxy

ROUNDS, SECONDS = 3, 14

_GOOD = "127.0.0.9"  # the attackers have addresses of their own
_PAUSE_S = 0.01
_LEAD_S = 2  # until all attackers are connected
_PATIENCE = aiohttp.ClientTimeout(total=10)
_BODY = {"model": "llama3.1", "messages": [{"role": "user", "content": "Hello?"}]}
_NOBODY, _ALL = "nobody", "all of these at once"


@dataclass(frozen=True, slots=True)
class Siege:
    """How the good client fared in each round of an attack, and what Envoy took."""

    attack: str
    rounds: list[Times]
    statuses: dict[int, int]
    cpu: dict[str, float]
    most_kb: int
    load_average: float


async def measure_floods() -> list[Siege]:
    """Measure, after a time without an attack. Raises ConfigError, ChildDied."""
    attacks = {_NOBODY: [], **{name: [name] for name in ATTACKS}, _ALL: list(ATTACKS)}
    return [await _measure(what, names) for what, names in attacks.items()]


async def _measure(what: str, names: Sequence[str]) -> Siege:
    click.echo(f"floods, {what}", err=True)
    statuses: Counter[int] = Counter()
    rounds = []
    async with starting() as parts:
        await parts.constant_upstream()
        service = await parts.service()
        proxy = await parts.envoy("gateway", service.socket)
        key = await new_key(service.database_url)
        pids = {"envoy": proxy.pid, "authz": service.pids["authz"]}
        async with watching(pids) as watched:
            for _ in range(ROUNDS):
                answers = await _besieged(parts, proxy, key, names)
                statuses.update(status for _, status in answers)
                rounds.append(times([seconds for seconds, _ in answers]))
        most = max([*watched.memory["envoy"], memory_kb(proxy.pid)])
    return Siege(what, rounds, statuses, watched.cpu, most, os.getloadavg()[0])


async def _besieged(
    parts: Parts, proxy: Proxy, key: str, names: Sequence[str]
) -> Sequence[tuple[float, int]]:
    if not names:
        return await _call(proxy, key)
    log = parts.workplace / "attackers.log"
    attacking = asyncio.create_task(attack(proxy.port, names, SECONDS, log))
    await asyncio.sleep(_LEAD_S)
    answers = await _call(proxy, key)
    await attacking
    return answers


async def _call(proxy: Proxy, key: str) -> Sequence[tuple[float, int]]:
    """Call one time after the other, each on a new connection, until shortly before
    the attackers end."""
    headers = {"authorization": f"Bearer {key}"}
    ends = perf_counter() + SECONDS - 2 * _LEAD_S
    answers = []
    connector = aiohttp.TCPConnector(local_addr=(_GOOD, 0), force_close=True)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{proxy.port}", connector=connector, timeout=_PATIENCE
    ) as client:
        while perf_counter() < ends:
            answers.append(await _timed(client, headers))
            await asyncio.sleep(_PAUSE_S)
    return answers


async def _timed(
    client: aiohttp.ClientSession, headers: Mapping[str, str]
) -> tuple[float, int]:
    """Call once; status 0 stands for no answer."""
    start = perf_counter()
    try:
        async with client.post("/api/chat", json=_BODY, headers=headers) as response:
            await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    return perf_counter() - start, status


def floods_section(sieges: Sequence[Siege]) -> str:
    """Return the table of attacks."""
    return section(
        "Floods",
        table(
            "attack | statuses of good calls | p50 ms | p99 ms | p99 of each round "
            "| max ms | Envoy's memory | CPU of Envoy | of authz | load",
            [_row(siege) for siege in sieges],
            words=2,
        ),
        f"The whole gateway. One client with a good key calls, one call after the "
        f"other and each on a new connection, {SECONDS - 2 * _LEAD_S} s in each of "
        f"{ROUNDS} rounds, while nobody without a key gets through: "
        "200 clients send headers, and 200 bodies, a little at a time; 2,000 "
        "connections are idle; 4 connections reset streams as soon as they are open; "
        "8 clients send bodies of 16 MiB, with a length and without, without a key and "
        "with one that does not exist; 10 connections hold 100 streams each whose "
        "bodies lack a byte, and 10 have 100 answers each of which they read nothing. "
        "Who is thrown out comes again. p50 and p99 are medians of the rounds. Memory "
        "is the most that Envoy held of all its memory. CPU is a share of one core. "
        "All programs, the attackers too, share the cores named above.",
    )


def _row(siege: Siege) -> Sequence[str]:
    rounds = siege.rounds
    return (
        siege.attack,
        ", ".join(f"{status}: {n:,}" for status, n in sorted(siege.statuses.items())),
        f"{median(one.p50_ms for one in rounds):.1f}",
        f"{median(one.p99_ms for one in rounds):.1f}",
        ", ".join(f"{one.p99_ms:.1f}" for one in rounds),
        f"{max(one.max_ms for one in rounds):.1f}",
        mb(siege.most_kb),
        *(f"{share:.0%}" for share in siege.cpu.values()),
        f"{siege.load_average:.1f}",
    )


async def _report() -> str:
    return document(surroundings(), [floods_section(await measure_floods())])


if __name__ == "__main__":
    outcome_of(_report())
