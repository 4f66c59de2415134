"""What all parts of the report are made of. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NOTHING = "-"  # what tables say where there is no figure
_LONGEST_LINE = 300


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, over many times."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    def __str__(self) -> str:
        return (
            f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms, "
            f"max {self.max_ms:.1f} ms"
        )


def times(seconds: Sequence[float]) -> Times:
    """Sum up at least two times."""
    found = quantiles(seconds, n=100, method="inclusive")
    return Times(len(seconds), found[49] * 1e3, found[98] * 1e3, max(seconds) * 1e3)


def document(surroundings: Sequence[str], sections: Iterable[str]) -> str:
    """Return the report of a run."""
    lines = "\n".join(f"- {line}" for line in surroundings)
    return "\n\n".join(["# What the gateway costs", lines, *sections]) + "\n"


def section(title: str, *paragraphs: str) -> str:
    """Return a part of the report."""
    return "\n\n".join([f"## {title}", *paragraphs])


def table(header: str, rows: Iterable[Iterable[str]], words: int = 1) -> str:
    """Return a table; ``header`` has a bar between two columns.

    The first ``words`` columns are words, the others numbers.
    """
    names = [name.strip() for name in header.split("|")]
    rules = ["---"] * words + ["---:"] * (len(names) - words)
    return "\n".join(_row(cells) for cells in (names, rules, *rows))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    """Return the largest less the smallest value, as a share of the median."""
    least, most = min(values, default=0), max(values, default=0)
    return f"{(most - least) / median(values):.0%}" if most else NOTHING


def paired(
    here: Sequence[float | None],
    there: Sequence[float | None],
    compare: Callable[[float, float], float],
) -> list[float]:
    """Compare what was measured in the same round, where both were."""
    pairs = zip(here, there, strict=True)
    return [compare(a, b) for a, b in pairs if a is not None and b is not None]


def middle(values: Sequence[float], form: str) -> str:
    """Return the median in such a form."""
    return format(median(values), form) if values else NOTHING


def in_a_line(text: str) -> str:
    """Return what went wrong in a line that is not too long."""
    return " ".join(text.split())[:_LONGEST_LINE]


def mb(kilobytes: float) -> str:
    """Return an amount of memory."""
    return f"{kilobytes * 1024 / 1e6:.0f} MB"
