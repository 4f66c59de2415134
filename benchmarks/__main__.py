"""`python -m benchmarks`: measure, print the tables, keep them in results/.

Subjects take turns within a round, so that noise hits all of them alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.command import outcome_of
from benchmarks.load import LINES_PER_S, SECONDS, STREAMS, measure_load
from benchmarks.report import (
    Samples,
    StreamSamples,
    document,
    requests_section,
    revocation_section,
    scale_section,
    streams_section,
)
from benchmarks.revocation import measure_revocation
from benchmarks.scale import measure_scale
from benchmarks.strangers import measure_strangers, strangers_section
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
    type=click.Choice(
        ["requests", "streams", "load", "revocation", "scale", "strangers"]
    ),
    help="Measure this alone, and keep no report.",
)
def main(rounds: int, seconds: int, only: str | None) -> None:
    """Measure what the gateway costs, how fast it revokes, and a million keys."""
    text = outcome_of(_run(rounds, seconds, only))
    if only is None:
        _RESULT.parent.mkdir(exist_ok=True)
        _RESULT.write_text(text)


async def _run(rounds: int, seconds: int, only: str | None) -> str:
    sections = []
    version = ""
    if only in {None, "requests"}:
        version, section = await _requests(rounds, seconds)
        sections.append(section)
    if only in {None, "streams"}:
        version, section = await _streams(rounds, seconds)
        sections.append(section)
    if only in {None, "load"}:
        sections.append(await measure_load(STREAMS, SECONDS, LINES_PER_S))
    if only in {None, "revocation"}:
        sections.append(revocation_section(await measure_revocation()))
    if only in {None, "scale"}:
        sections.append(scale_section(await measure_scale()))
    if only in {None, "strangers"}:
        sections.append(strangers_section(await measure_strangers()))
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
