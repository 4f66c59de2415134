"""Streams at once through one gateway: each whole, counted once, and at what cost.

`python -m benchmarks.load` measures this alone, and fails where it is not so.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import click

from benchmarks.accounts import running_gateway
from benchmarks.command import outcome_of
from benchmarks.plots import lines
from benchmarks.processes import watching
from benchmarks.report import Times, document, mb, section, table, times
from benchmarks.surroundings import surroundings
from benchmarks.wrk import LoadFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.accounts import Gateway, Visit

STEPS = (1, 10, 100, 1000)
SECONDS, LINES_PER_S = 15, 5

_KEYS = 20
_OPENED_PER_S = 100
_WARM_UP_S = 2

_PROGRAMS = ("envoy", "authz", "redis", "postgres", "both ends")
_HEADER = "streams | at once | a line under way, p50 ms | p99 | max"


@dataclass(frozen=True, slots=True)
class Crowd:
    """Streams at once: how long a line was under way, and what the programs took.

    ``cpu`` is a share of a core, ``memory_kb`` the most that was resident.
    """

    streams: int
    at_once: int
    lines: int
    under_way: Times
    cpu: dict[str, float]
    memory_kb: dict[str, int]


async def measure_crowds() -> list[Crowd]:
    """Measure one stream to very many. Raises ConfigError, ChildDied, LoadFailed."""
    return [await measure_crowd(count, SECONDS, LINES_PER_S) for count in STEPS]


async def measure_crowd(streams: int, seconds: int, lines_per_s: int) -> Crowd:
    """Measure so many streams at once.

    Raises LoadFailed if one is not whole, or not counted once.
    """
    click.echo(f"streams at once: {streams:,}", err=True)
    async with running_gateway(lines_per_s) as gateway:
        async with watching(gateway.pids) as watched:
            visits = await _open_all(gateway, streams, seconds * lines_per_s)
            await asyncio.sleep(_WARM_UP_S)
            watched.warmed_up()
            at_once = sum(not visit.client.ended.is_set() for visit in visits)
            for visit in visits:
                await visit.client.ended.wait()
        problems = await gateway.problems(visits)
    if problems:
        raise LoadFailed("; ".join(problems))
    lags = chain.from_iterable(visit.client.heard.lags for visit in visits)
    memory_kb = {name: max(samples) for name, samples in watched.memory.items()}
    counts = (streams, at_once, visits[0].lines)
    return Crowd(*counts, times([*lags]), watched.cpu, memory_kb)


async def _open_all(gateway: Gateway, streams: int, lines: int) -> Sequence[Visit]:
    """Open streams evenly; a key with limits has as many slots as streams."""
    a_key = -(-streams // _KEYS)
    limited = f"concurrency={a_key},tpm=100000000,budget=1000000000/day"
    keys = [await gateway.key(limited if n % 2 else "") for n in range(_KEYS)]
    loop = asyncio.get_running_loop()
    started = loop.time()
    visits = []
    for number in range(streams):
        await asyncio.sleep(started + number / _OPENED_PER_S - loop.time())
        visits.append(await gateway.visit(keys[number % _KEYS], lines))
    return visits


def crowds_section(crowds: Sequence[Crowd]) -> str:
    """Return the table of what the programs took."""
    columns = [f"{what} of {name}" for name in _PROGRAMS for what in ("CPU", "RSS")]
    return section(
        "Streams at once",
        table(" | ".join([_HEADER, *columns]), [_row(crowd) for crowd in crowds]),
        "![processors by streams](streams.svg)",
        f"Streams of {crowds[0].lines} lines, a chunk each, opened at {_OPENED_PER_S} "
        "a second. A line is under way from the model server to the client, which are "
        "one process (both ends). Every stream came to its last line; every request "
        "is recorded once, with the tokens that its last line told; every slot is "
        "free again, and no entry of the access log was dropped. Half of the "
        f"{_KEYS} keys have limits. CPU is a share of one core, RSS the most of "
        "samples taken every second. Of clusters.yaml one thing is changed: it lets "
        "more through to the model server at once.",
    )


def crowds_plots(crowds: Sequence[Crowd]) -> Mapping[str, str]:
    """Return the plot."""
    curves = {
        name: [(float(crowd.streams), crowd.cpu[name] * 100) for crowd in crowds]
        for name in _PROGRAMS
    }
    plot = lines("CPU, % of a core", "streams at once", curves, own="authz")
    return {"streams.svg": plot}


def _row(crowd: Crowd) -> Iterator[str]:
    under_way = crowd.under_way
    yield from (f"{crowd.streams:,}", f"{crowd.at_once:,}")
    yield from (f"{under_way.p50_ms:.1f}", f"{under_way.p99_ms:.1f}")
    yield f"{under_way.max_ms:.0f}"
    for name in _PROGRAMS:
        yield from (f"{crowd.cpu[name]:.1%}", mb(crowd.memory_kb[name]))


@click.command()
@click.option("--streams", default=STEPS[-1], show_default=True)
@click.option("--seconds", default=60, show_default=True, help="Of one stream.")
@click.option("--lines", default=LINES_PER_S, show_default=True, help="Each second.")
def main(streams: int, seconds: int, lines: int) -> None:
    """Run many streams at once, and check that each is whole and counted once."""
    outcome_of(_report(streams, seconds, lines))


async def _report(streams: int, seconds: int, lines_per_s: int) -> str:
    crowd = await measure_crowd(streams, seconds, lines_per_s)
    return document(surroundings(), [crowds_section([crowd])])


if __name__ == "__main__":
    main()
