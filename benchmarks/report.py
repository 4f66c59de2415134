"""The samples as a table in Markdown: medians, and what a subject adds. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.wrk import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.wrk import Load

Samples = dict[str, list[Sample]]

_HEADER = (
    "| connections | subject | requests/s | spread | p50 ms | p99 ms "
    "| requests/s of floor | p50 over floor, ms |\n"
    "|---:|---|---:|---:|---:|---:|---:|---:|"
)


@dataclass(frozen=True, slots=True)
class Results:
    """All samples of a run: by load, then by subject, floor first."""

    samples: Mapping[Load, Samples]
    rounds: int
    surroundings: Sequence[str]


def markdown(results: Results) -> str:
    """Return the report of a run."""
    rows = [
        _row(load, name, samples)
        for load, samples in results.samples.items()
        for name in samples
    ]
    seconds = next(iter(results.samples)).seconds
    paragraphs = (
        "# What the gateway costs",
        "\n".join(f"- {line}" for line in results.surroundings),
        "\n".join([_HEADER, *rows]),
        f"Medians of {results.rounds} rounds; a round measures every subject for "
        f"{seconds} s at every number of connections, one after the other. Spread is "
        "the largest minus the smallest rate, as a share of the median.",
        "`floor` is Envoy with a grpcio server that allows everything unread; "
        "`gateway` is Envoy with `authz serve`, PostgreSQL, Redis and a key in "
        "memory. Both have the same listener.yaml, and an Envoy that gives one "
        "constant answer stands behind both. wrk, the Envoys and the service share "
        "the cores named above, so the absolute rates are those of a small machine "
        "that is busy with measuring; compare the rows of one table only.",
    )
    return "\n\n".join(paragraphs) + "\n"


def _row(load: Load, name: str, samples: Samples) -> str:
    floor = _median(next(iter(samples.values())))
    here = _median(samples[name])
    rates = [sample.rps for sample in samples[name]]
    cells = (
        str(load.connections),
        name,
        f"{here.rps:,.0f}",
        f"{(max(rates) - min(rates)) / here.rps:.0%}",
        f"{here.p50_ms:.2f}",
        f"{here.p99_ms:.2f}",
        f"{here.rps / floor.rps:.0%}",
        f"{here.p50_ms - floor.p50_ms:+.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _median(samples: Sequence[Sample]) -> Sample:
    return Sample(
        rps=median(sample.rps for sample in samples),
        p50_ms=median(sample.p50_ms for sample in samples),
        p99_ms=median(sample.p99_ms for sample in samples),
    )
