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
from benchmarks.report import Results, Samples, markdown
from benchmarks.subjects import Subjects, running_subjects
from benchmarks.surroundings import surroundings
from benchmarks.wrk import Load, find_wrk, measure

_CONNECTIONS = (1, 32)
_WARM_UP_S = 2
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
    _RESULT.parent.mkdir(exist_ok=True)
    _RESULT.write_text(text)


async def _run(rounds: int, seconds: int) -> Results:
    async with running_subjects() as subjects:
        await _round(subjects, _no_samples(subjects, _WARM_UP_S))
        samples = _no_samples(subjects, seconds)
        for _ in range(rounds):
            await _round(subjects, samples)
    return Results(samples, rounds, surroundings(subjects.envoy_version))


def _no_samples(subjects: Subjects, seconds: int) -> dict[Load, Samples]:
    return {
        Load(connections, seconds): {name: [] for name in subjects.ports}
        for connections in _CONNECTIONS
    }


async def _round(subjects: Subjects, samples: dict[Load, Samples]) -> None:
    for load, by_subject in samples.items():
        for name, port in subjects.ports.items():
            click.echo(f"{name}, connections: {load.connections}", err=True)
            by_subject[name].append(await measure(port, load, subjects.workplace))


if __name__ == "__main__":
    main()
