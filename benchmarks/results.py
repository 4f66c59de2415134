"""Everything that one run has measured, kept as JSON, and the pages made of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from benchmarks.report import document, section
from benchmarks.revocation import Revocation, revocation_section
from benchmarks.scale import Scale, scale_plots, scale_section
from benchmarks.startup import Startup, startup_section
from benchmarks.strangers import Flood, strangers_section
from benchmarks.streams import Streams, streams_section
from benchmarks.surroundings import Surroundings  # noqa: TC001 - the same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FOLDER = Path(__file__).parent / "results"
_NOTES = Path(__file__).with_name("notes.md")
README = Path(__file__).parents[1] / "README.md"
_BEGIN = "<!-- Made by `python -m benchmarks --render`. -->\n"
_END = "<!-- End of what was made. -->\n"
_JSON = "latest.json"
_PAGE = "latest.md"


@dataclass(slots=True)
class Results:
    """The measures of a run, in the order of the report; None was not measured."""

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


MEASURES = tuple(field.name for field in fields(Results)[1:])
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
_PLOTS: Mapping[str, Callable[[Any], Mapping[str, str]]] = {
    "comparison": comparison_plots,
    "bodies": bodies_plots,
    "load": crowds_plots,
    "scale": scale_plots,
}
_adapter = TypeAdapter(Results)


def page(results: Results, notes: str = "") -> str:
    """Return the report: goals, what to say of them, and all that was measured."""
    goals = section("Goals", goals_table(results), *filter(None, [notes.strip()]))
    return document(results.surroundings.lines, [goals, *_sections(results)])


def part(results: Results) -> str:
    """Return a report of nothing but what was measured."""
    return document(results.surroundings.lines, _sections(results))


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
    made = {_PAGE: page(results, _NOTES.read_text() if _NOTES.exists() else "")}
    for name, measured in _measured(results):
        if name in _PLOTS:
            made |= _PLOTS[name](measured)
    return made


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
    return "\n\n".join(
        (
            f"{where.date}, {where.machine}; {where.versions_line}:",
            summary_table(comparison),
            "![requests a second](benchmarks/results/throughput.svg)",
            f"{found.count(True)} of {len(found)} goals are met; all figures, and what "
            "limits the others: [benchmarks/results/latest.md]"
            "(benchmarks/results/latest.md).\n\n",
        )
    )


def write_pages(results: Results) -> None:
    """Write the report, its plots, and the figures of the README."""
    for name, text in pages(results).items():
        (FOLDER / name).write_text(text)
    README.write_text(with_summary(README.read_text(), results))
