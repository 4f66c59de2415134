"""Everything that one run has measured, kept as JSON, and the pages made of it."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import TypeAdapter

from benchmarks.bodies import Bodies, bodies_plots, bodies_section
from benchmarks.comparison import Comparison  # noqa: TC001 - pydantic reads it
from benchmarks.comparison_tables import (
    comparison_plots,
    comparison_section,
    summary_table,
)
from benchmarks.floods import Siege, floods_section
from benchmarks.goals import goals, goals_table
from benchmarks.load import Crowd, crowds_plots, crowds_section
from benchmarks.patterns import Patterns, patterns_section
from benchmarks.report import document, in_a_line, section
from benchmarks.revocation import Revocation, revocation_section
from benchmarks.scale import Scale, scale_plots, scale_section
from benchmarks.startup import Startup, startup_section
from benchmarks.strangers import Flood, strangers_section
from benchmarks.streams import Streams, streams_section
from benchmarks.surroundings import Surroundings  # noqa: TC001 - the same

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

FOLDER = Path(__file__).parent / "results"
_NOTES = Path(__file__).with_name("notes.md")
README = Path(__file__).parents[1] / "README.md"
_BEGIN = "<!-- Made by `python -m benchmarks --render`. -->\n"
_END = "<!-- End of what was made. -->\n"
_JSON = "latest.json"
_PAGE = "latest.md"


@dataclass(slots=True)
class Results:
    """The measures of a run; None was not measured. ``failed`` says why, by name."""

    surroundings: Surroundings
    comparison: Comparison | None = None
    startup: Startup | None = None
    bodies: Bodies | None = None
    patterns: Patterns | None = None
    streams: Streams | None = None
    load: list[Crowd] | None = None
    revocation: Revocation | None = None
    scale: Scale | None = None
    strangers: list[Flood] | None = None
    floods: list[Siege] | None = None
    failed: dict[str, str] = field(default_factory=dict)


# In the order of the report.
_SECTIONS: Mapping[str, Callable[[Any], str]] = {
    "comparison": comparison_section,
    "startup": startup_section,
    "bodies": bodies_section,
    "patterns": patterns_section,
    "streams": streams_section,
    "load": crowds_section,
    "revocation": revocation_section,
    "scale": scale_section,
    "strangers": strangers_section,
    "floods": floods_section,
}
MEASURES = tuple(_SECTIONS)
_PLOTS: Mapping[str, Callable[[Any], Mapping[str, str]]] = {
    "comparison": comparison_plots,
    "bodies": bodies_plots,
    "load": crowds_plots,
    "scale": scale_plots,
}
_adapter = TypeAdapter(Results)


async def measure_all(
    results: Results, measures: Mapping[str, Callable[[], Awaitable[Any]]]
) -> None:
    """Measure one after the other. What fails is noted, and the rest goes on."""
    for name, measure in measures.items():
        try:
            setattr(results, name, await measure())
        except Exception as error:
            running = asyncio.current_task()
            if running and running.cancelling():
                raise  # somebody wants us to end, and ending failed
            click.echo(traceback.format_exc(), err=True)
            results.failed[name] = f"{type(error).__name__}: {error}"


def page(results: Results, notes: str = "") -> str:
    """Return the report: goals, what to say of them, and all that was measured."""
    goals = section("Goals", goals_table(results), *filter(None, [notes.strip()]))
    lines = [*results.surroundings.lines, *_reasons(results, _absent(results))]
    return document(lines, [goals, *_sections(results)])


def part(results: Results) -> str:
    """Return a report of nothing but what was measured."""
    lines = [*results.surroundings.lines, *_reasons(results, results.failed)]
    return document(lines, _sections(results))


def _absent(results: Results) -> list[str]:
    return [name for name in MEASURES if getattr(results, name) is None]


def _reasons(results: Results, names: Iterable[str]) -> Iterator[str]:
    """Say why these were not measured, each in a line."""
    for name in names:
        why = in_a_line(results.failed.get(name, ""))
        yield f"{name}: not measured" + (f": {why}" if why else "")


def _sections(results: Results) -> Iterator[str]:
    for name, measured in _measured(results):
        yield _SECTIONS[name](measured)


def _measured(results: Results) -> Iterator[tuple[str, Any]]:
    for name in MEASURES:
        if (measured := getattr(results, name)) is not None:
            yield name, measured


def save(results: Results, folder: Path = FOLDER) -> None:
    """Keep the figures; the pages are made of them."""
    folder.mkdir(exist_ok=True)
    (folder / _JSON).write_bytes(_adapter.dump_json(results, indent=1) + b"\n")


def load_latest(folder: Path = FOLDER) -> Results:
    """Return what was kept."""
    return _adapter.validate_json((folder / _JSON).read_bytes())


def pages(results: Results) -> Mapping[str, str]:
    """Return all that is made of the figures, by file."""
    notes = notes_of(results.surroundings.date, _NOTES.read_text())
    made = {_PAGE: page(results, notes)}
    for name, measured in _measured(results):
        if name in _PLOTS:
            made |= _PLOTS[name](measured)
    return made


def notes_of(date: str, text: str) -> str:
    """Return the notes, if they are those of the run of this date."""
    first, _, rest = text.partition("\n")
    if first == f"<!-- run: {date} -->":
        return rest
    return "Nobody has explained this run yet."


def with_summary(text: str, results: Results) -> str:
    """Return the README with these figures in their place."""
    if results.comparison is None:
        return text
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{_summary(results, results.comparison)}{_END}{after}"


def _summary(results: Results, comparison: Comparison) -> str:
    found = [goal.is_met for goal in goals(results)]
    where = results.surroundings
    absent = _absent(results)
    missing = f" Not measured in this run: {', '.join(absent)}." if absent else ""
    return "\n\n".join(
        (
            f"{where.date}, commit {where.commit or 'unknown'}, {where.machine}; "
            f"{where.versions_line}:",
            summary_table(comparison),
            "![requests a second](benchmarks/results/throughput.svg)",
            f"{found.count(True)} of {len(found)} goals are met; all figures, and what "
            "limits the others: [benchmarks/results/latest.md]"
            f"(benchmarks/results/latest.md).{missing}\n\n",
        )
    )


def write_pages(results: Results) -> None:
    """Write the report, its plots, and the figures of the README."""
    for name, text in pages(results).items():
        (FOLDER / name).write_text(text)
    README.write_text(with_summary(README.read_text(), results))
