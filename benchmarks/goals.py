"""What we set out to reach, beside what was measured. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.bodies import MIB
from benchmarks.comparison import CONNECTIONS, NOT_MEASURED, PER_S
from benchmarks.comparison_tables import added, p50, p99, times_of
from benchmarks.report import table
from benchmarks.subjects import FLOOR, LIMITS, LITELLM, WARM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.comparison import Comparison
    from benchmarks.results import Results

_ALONE = str(CONNECTIONS[0])
_EVENLY = f"{PER_S}/s"
_KB = 1024 / 1e6  # MB


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound from above or, if ``at_least``, from below, for the median of figures.

    No figure: not measured. ``floor`` is the floor's figure in the same run.
    """

    what: str
    bound: float
    unit: str
    figures: Sequence[float]
    at_least: bool = False
    floor: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether it is; None where nothing was measured."""
        if not self.figures:
            return None
        figure = median(self.figures)
        return figure >= self.bound if self.at_least else figure <= self.bound


def goals(results: Results) -> Iterator[Goal]:
    """Return all goals."""
    yield from _of_requests(results.comparison or NOT_MEASURED)
    startup, bodies, scale = results.startup, results.bodies, results.scale
    yield Goal("`authz serve` ready", 1.5, "s", startup.serve if startup else ())
    body = bodies.added_ms(MIB) if bodies else ()
    yield Goal("a body of 1 MiB: added to the floor's p50", 8, "ms", body)
    cold = [scale.cold.p99_ms] if scale else ()
    yield Goal("cold look-up among 1,000,000 keys, p99 at 200/s", 5, "ms", cold)
    full = [scale.full_kb * _KB] if scale else ()
    yield Goal("RSS with 100,000 keys in memory", 200, "MB", full)
    revoked = results.revocation.revoked if results.revocation else None
    last = "revocation until the last of three replicas"
    yield Goal(f"{last}, p99", 50, "ms", [revoked.p99_ms] if revoked else ())
    yield Goal(f"{last}, longest", 250, "ms", [revoked.max_ms] if revoked else ())


def _of_requests(measured: Comparison) -> Iterator[Goal]:
    for subject, share, added_ms in ((WARM, 0.95, 0.05), (LIMITS, 0.75, 0.4)):
        rates = times_of(measured, subject, FLOOR)
        yield Goal(
            f"{subject}: throughput, of the floor's", share, "", rates, at_least=True
        )
        yield Goal(
            f"{subject}: added to the floor's p50, 1 connection",
            added_ms,
            "ms",
            added(measured, _ALONE, subject, p50),
            floor=measured.middle(_ALONE, FLOOR, p50),
        )
        yield Goal(
            f"{subject}: p99 at {PER_S}/s",
            3,
            "ms",
            measured.figures(_EVENLY, subject, p99),
            floor=measured.middle(_EVENLY, FLOOR, p99),
        )
    peer = times_of(measured, WARM, LITELLM)
    yield Goal(f"{WARM}: throughput, of {LITELLM}'s", 20, "times", peer, at_least=True)
    idle = [measured.idle_kb[WARM]["service"] * _KB] if measured.idle_kb else ()
    yield Goal("RSS of `authz serve`, idle", 90, "MB", idle)


def goals_table(results: Results) -> str:
    """Return the table of goals."""
    return table(
        "goal | bound | measured | of the rounds: least | most | floor of the same run "
        "| met",
        [_row(goal) for goal in goals(results)],
    )


def _row(goal: Goal) -> Iterator[str]:
    yield goal.what
    yield f"{'≥' if goal.at_least else '≤'} {goal.bound:g} {goal.unit}".strip()
    if goal.figures:
        yield f"**{_figure(median(goal.figures))} {goal.unit}**".replace(" **", "**")
        yield from map(_figure, (min(goal.figures), max(goal.figures)))
    else:
        yield from ("not measured", "", "")
    yield "" if goal.floor is None else _figure(goal.floor)
    yield {True: "yes", False: "**no**", None: ""}[goal.is_met]


def _figure(value: float) -> str:
    """Return a number with three digits that matter, at most two of them fractions."""
    digits = next((n for n, above in ((0, 100), (1, 10)) if abs(value) >= above), 2)
    return f"{value:,.{digits}f}"
