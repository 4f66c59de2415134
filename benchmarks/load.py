"""Many streams at once through one gateway: each whole, and counted exactly once.

`python -m benchmarks.load` measures this alone, and fails where it is not so.
"""

from __future__ import annotations

import asyncio
from itertools import chain
from statistics import quantiles
from typing import TYPE_CHECKING

import click

from benchmarks.accounts import running_gateway
from benchmarks.command import outcome_of
from benchmarks.processes import watching
from benchmarks.report import document
from benchmarks.surroundings import surroundings
from benchmarks.wrk import LoadFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.accounts import Gateway, Visit
    from benchmarks.processes import Watched

STREAMS, SECONDS, LINES_PER_S = 1000, 60, 5

_KEYS = 20
_OPENED_PER_S = 100
_WARM_UP_S = 5

_HEADER = "| program | CPU, % of a core | RSS, MB: least | most |\n|---|---:|---:|---:|"


async def measure_load(streams: int, seconds: int, lines_per_s: int) -> str:
    """Return the section on so many streams at once.

    Raises LoadFailed if one is not whole, or not counted once.
    """
    click.echo(f"load, {streams:,} streams", err=True)
    async with running_gateway(lines_per_s) as gateway:
        async with watching(gateway.pids) as watched:
            visits = await _open_all(gateway, streams, seconds * lines_per_s)
            await asyncio.sleep(_WARM_UP_S)
            watched.warmed_up()
            running = sum(not visit.client.ended.is_set() for visit in visits)
            for visit in visits:
                await visit.client.ended.wait()
        problems = await gateway.problems(visits)
    if problems:
        raise LoadFailed("; ".join(problems))
    return load_section(visits, running, watched)


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


def load_section(visits: Sequence[Visit], running: int, watched: Watched) -> str:
    """Return the table of what the programs took."""
    lags = [*chain.from_iterable(visit.client.heard.lags for visit in visits)]
    found = quantiles(lags, n=100, method="inclusive")
    rows = [
        f"| {name} | {watched.cpu[name]:.0%} | {min(memory) / 1024:.1f} "
        f"| {max(memory) / 1024:.1f} |"
        for name, memory in watched.memory.items()
    ]
    paragraphs = (
        "## Load",
        "\n".join([_HEADER, *rows]),
        f"{len(visits):,} streams, opened at {_OPENED_PER_S} a second, {running:,} of "
        f"them at once; {visits[0].lines} lines in each, a chunk each. A line was "
        f"under way for p50 {found[49] * 1e3:.1f} ms, p99 {found[98] * 1e3:.1f} ms, "
        f"at most {max(lags) * 1e3:.0f} ms, from the model server to the client, "
        "which are one process. Every stream came to its last line; every request "
        "is recorded once, with the tokens that its last line told; every slot is "
        "free again, and no entry of the access log was dropped. Half of the "
        f"{_KEYS} keys have limits. Memory is sampled every second while all run. "
        "Of clusters.yaml one thing is changed: it lets more through to the model "
        "server at once.",
    )
    return "\n\n".join(paragraphs)


@click.command()
@click.option("--streams", default=STREAMS, show_default=True)
@click.option("--seconds", default=SECONDS, show_default=True, help="Of one stream.")
@click.option("--lines", default=LINES_PER_S, show_default=True, help="Each second.")
def main(streams: int, seconds: int, lines: int) -> None:
    """Run many streams at once, and check that each is whole and counted once."""
    outcome_of(_report(streams, seconds, lines))


async def _report(streams: int, seconds: int, lines_per_s: int) -> str:
    section = await measure_load(streams, seconds, lines_per_s)
    return document(surroundings(), [section])


if __name__ == "__main__":
    main()
