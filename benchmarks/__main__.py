"""`python -m benchmarks`: measure, print the table, keep it in results/.

Subjects take turns within a round, so that noise hits all of them alike.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from authz.errors import AuthzError, ConfigError
from benchmarks.report import Results, markdown
from benchmarks.subjects import Subjects, running_subjects
from benchmarks.surroundings import surroundings
from benchmarks.wrk import Load, find_wrk, measure

_CONNECTIONS = (1, 32)
_RESULT = Path(__file__).parent / "results" / "latest.md"


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--seconds",
    default=4,
    show_default=True,
    type=click.IntRange(min=1),
    help="Length of one sample.",
)
def main(rounds: int, seconds: int) -> None:
    """Measure the gateway against a server that does nothing."""
    # As Ctrl-C does: asyncio then unwinds, and every program started here ends.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        find_wrk()
        results = asyncio.run(_run(rounds, seconds))
    except AuthzError as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    text = markdown(results)
    click.echo(text, nl=False)
    _RESULT.write_text(text)


async def _run(rounds: int, seconds: int) -> Results:
    loads = [Load(connections, seconds) for connections in _CONNECTIONS]
    async with running_subjects() as subjects:
        results = Results(
            samples={load: {name: [] for name in subjects.ports} for load in loads},
            rounds=rounds,
            surroundings=surroundings(subjects.envoy_version),
        )
        click.echo("warming up", err=True)
        await _measure_all(subjects, loads, None)
        for number in range(1, rounds + 1):
            click.echo(f"round {number} of {rounds}", err=True)
            await _round(subjects, results)
    return results


async def _round(subjects: Subjects, results: Results) -> None:
    for load, samples in results.samples.items():
        for name, port in subjects.ports.items():
            sample = await measure(port, load, subjects.workplace)
            samples[name].append(sample)


if __name__ == "__main__":
    main()
