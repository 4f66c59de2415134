"""`python -m benchmarks`: measure, print the tables, keep them in results/.

Subjects take turns within a round, so that noise hits all of them alike.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from authz.errors import AuthzError, ConfigError
from benchmarks.report import (
    Samples,
    StreamSamples,
    document,
    requests_section,
    streams_section,
)
from benchmarks.streams import measure_streams
from benchmarks.subjects import Subjects, request_subjects, stream_subjects
from benchmarks.surroundings import surroundings
from benchmarks.wrk import Load, find_wrk, measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.lockstep import Upstream
    from benchmarks.streams import StreamSample

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
@click.option(
    "--only",
    type=click.Choice(["requests", "streams"]),
    help="Measure this alone, and keep no report.",
)
def main(rounds: int, seconds: int, only: str | None) -> None:
    """Measure the gateway against a server that does nothing, and its streams."""
    # As Ctrl-C does: asyncio then unwinds, and every program started here ends.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        text = asyncio.run(_run(rounds, seconds, only))
    except AuthzError as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    click.echo(text, nl=False)
    if only is None:
        _RESULT.parent.mkdir(exist_ok=True)
        _RESULT.write_text(text)


async def _run(rounds: int, seconds: int, only: str | None) -> str:
    measures = {"requests": _requests, "streams": _streams}
    names = [only] if only else list(measures)
    sections = []
    version = ""
    for name in names:
        version, section = await measures[name](rounds, seconds)
        sections.append(section)
    return document(surroundings(version), sections)


async def _requests(rounds: int, seconds: int) -> tuple[str, str]:
    """Return Envoy's version and the section on whole requests."""
    find_wrk()
    async with request_subjects() as subjects:
        await _request_round(subjects, _no_samples(subjects, _WARM_UP_S))
        samples = _no_samples(subjects, seconds)
        for _ in range(rounds):
            await _request_round(subjects, samples)
        return subjects.envoy_version, requests_section(samples)


def _no_samples(subjects: Subjects, seconds: int) -> dict[Load, Samples]:
    return {
        Load(connections, seconds): {name: [] for name in subjects.proxies}
        for connections in _CONNECTIONS
    }


async def _request_round(subjects: Subjects, samples: dict[Load, Samples]) -> None:
    for load, by_subject in samples.items():
        for name, proxy in subjects.proxies.items():
            click.echo(f"{name}, connections: {load.connections}", err=True)
            sample = await measure(proxy.port, load, subjects.workplace)
            by_subject[name].append(sample)


async def _streams(rounds: int, seconds: int) -> tuple[str, str]:
    """Return Envoy's version and the section on streams."""
    async with stream_subjects() as (subjects, upstream):
        samples: StreamSamples = {name: [] for name in subjects.proxies}
        await _stream_round(subjects, upstream, _WARM_UP_S)
        for _ in range(rounds):
            for name, sample in await _stream_round(subjects, upstream, seconds):
                samples[name].append(sample)
        return subjects.envoy_version, streams_section(samples)


async def _stream_round(
    subjects: Subjects, upstream: Upstream, seconds: int
) -> Sequence[tuple[str, StreamSample]]:
    round_ = []
    for name, proxy in subjects.proxies.items():
        click.echo(f"{name}, streams", err=True)
        sample = await measure_streams(proxy, upstream, subjects.key(), seconds)
        round_.append((name, sample))
    return round_


if __name__ == "__main__":
    main()
