"""What a key costs by its number of patterns, of which only the last one fits.

`python -m benchmarks --only patterns` measures this alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import click

from benchmarks import subjects
from benchmarks.parts import MODELS, new_key
from benchmarks.processes import cpu_of_families
from benchmarks.report import section, spread, table
from benchmarks.subjects import WARM
from benchmarks.wrk import Load, find_wrk, measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.subjects import Subject

COUNTS = (1, 10, 100, 1000)
_LOAD = Load(connections=1, seconds=2)


@dataclass(frozen=True, slots=True)
class Patterns:
    """By number of patterns, one a round: p50 in ms, and authz's CPU for a request."""

    p50_ms: dict[int, list[float]]
    cpu_us: dict[int, list[float]]


async def measure_patterns(rounds: int) -> Patterns:
    """Measure keys in turns. Raises ConfigError, ChildDied, LoadFailed."""
    find_wrk()
    async with subjects.site() as site:
        subject = await subjects.build(site, WARM)
        url = site.stores.database_url
        keys = {count: await new_key(url, _patterns(count)) for count in COUNTS}
        found = Patterns({n: [] for n in COUNTS}, {n: [] for n in COUNTS})
        await measure(subject.target, _LOAD)
        for number in range(1, rounds + 1):
            for count, key in keys.items():
                click.echo(f"patterns, round {number}: {count}", err=True)
                (subject.target.folder / "keys").write_text(f"{key}\n")
                p50_ms, cpu_us = await _measure(subject)
                found.p50_ms[count].append(p50_ms)
                found.cpu_us[count].append(cpu_us)
        return found


def _patterns(count: int) -> list[str]:
    others = (f"registry.ollama.ai/team-{n}/*:*" for n in range(count - 1))
    return [*others, *MODELS]


async def _measure(subject: Subject) -> tuple[float, float]:
    service = {"service": subject.pids["service"]}
    before = cpu_of_families(service)
    sample = await measure(subject.target, _LOAD)
    spent = cpu_of_families(service)["service"] - before["service"]
    return sample.p50_ms, spent / sample.requests * 1e6


def patterns_section(measured: Patterns) -> str:
    """Return the table of patterns."""
    header = "patterns of the key | p50 ms | spread | CPU of authz, µs | spread"
    rounds = len(measured.p50_ms[COUNTS[0]])
    return section(
        "Patterns",
        table(header, [_row(measured, count) for count in COUNTS]),
        f"One connection, a key in memory; medians of {rounds} rounds of "
        f"{_LOAD.seconds} s. Every pattern has stars, and the last one alone fits.",
    )


def _row(measured: Patterns, count: int) -> Iterator[str]:
    yield f"{count:,}"
    yield f"{median(measured.p50_ms[count]):.2f}"
    yield spread(measured.p50_ms[count])
    yield f"{median(measured.cpu_us[count]):.0f}"
    yield spread(measured.cpu_us[count])
