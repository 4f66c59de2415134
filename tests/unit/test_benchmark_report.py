"""What the report of a benchmark says of its samples."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from operator import truediv
from statistics import median
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from authz.errors import ChildDied
from benchmarks import comparison, subjects
from benchmarks import results as runs
from benchmarks.__main__ import main
from benchmarks.comparison_tables import summary_table, times_of
from benchmarks.goals import Goal, goals
from benchmarks.report import paired, spread, table, times
from benchmarks.results import MEASURES, Results
from benchmarks.subjects import FLOOR, LITELLM, WARM, Subject
from benchmarks.wrk import Load, LoadFailed, Sample, Target
from tests import made_up_results as made_up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECONDS = 3


def met(results: Results) -> dict[str, bool | None]:
    return {goal.what: goal.is_met for goal in goals(results)}


def test_times_are_summed_up_in_milliseconds() -> None:
    found = times([number / 1000 for number in range(101)])
    assert (found.count, found.p50_ms, found.p99_ms) == (101, 50, 99)
    assert found.max_ms == 100


def test_a_comparison_is_with_the_same_round() -> None:
    """The machine was twice as fast in the second round, for both alike."""
    assert paired([90, 180, 95], [100, 200, 100], truediv) == [0.9, 0.9, 0.95]


def test_one_disturbed_round_does_not_move_a_share() -> None:
    rates = {FLOOR: [4000.0, 4000.0, 4000.0], WARM: [3800.0, 400.0, 3800.0]}
    assert median(times_of(made_up.comparison(rates), WARM, FLOOR)) == 0.95


async def test_a_sample_that_fails_is_taken_again_and_then_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    floor, warm = (Subject(Target(port, tmp_path, "/"), {}) for port in (1, 2))
    broken = {(1, 1): 1, (2, 8): 2}  # how often, by subject and connections

    @asynccontextmanager
    async def site(_cold_keys: int) -> AsyncIterator[None]:
        yield

    async def build_all(*_: object) -> dict[str, Subject]:
        return {FLOOR: floor, WARM: warm}

    async def measure(target: Target, load: Load) -> Sample:
        what = (target.port, load.connections)
        if load.seconds == SECONDS and broken.get(what):
            broken[what] -= 1
            msg = "1 failures among 9 answers"
            raise LoadFailed(msg)
        return Sample(9, 9.0, 1.0, 1.0)

    monkeypatch.setattr(comparison, "find_wrk", lambda: "wrk")
    monkeypatch.setattr(subjects, "site", site)
    monkeypatch.setattr(comparison, "_build_all", build_all)
    monkeypatch.setattr(comparison, "measure", measure)
    found = await comparison.measure_comparison(2, SECONDS, {})
    assert None not in found.samples["1"][FLOOR] + found.samples["8"][FLOOR]
    assert [cost is None for cost in found.samples["8"][WARM]] == [True, False]
    assert found.repeated == [
        "floor at 1, round 1: 1 failures among 9 answers",
        "gateway, warm key at 8, round 1: 1 failures among 9 answers",
    ]
    assert found.missing == found.repeated[1:]


def row(text: str, name: str) -> list[str]:
    """Return the cells of a subject in the first table that has it."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_every_subject_is_taken_at_its_best_wherever_it_is_shown() -> None:
    results = made_up.results()
    assert results.comparison
    results.comparison.samples["8"][LITELLM] = [
        made_up.cost(rate, cpu_us=77) for rate in (390, 390, 20)
    ]
    assert median(times_of(results.comparison, WARM, LITELLM)) == 10
    assert row(summary_table(results.comparison), LITELLM)[:4] == [
        LITELLM, "390", "8", "10%",
    ]  # fmt: skip
    cost = row(runs.page(results), LITELLM)
    assert (cost[1:3], cost[6]) == (["390", "8"], "77")
    assert ">390<" in runs.pages(results)["throughput.svg"]


def test_a_missing_sample_costs_its_round_alone() -> None:
    measured = made_up.comparison({WARM: [4000.0, 2000.0, 4000.0]})
    for of_load in measured.samples.values():
        of_load[FLOOR][1] = None
    assert times_of(measured, WARM, FLOOR) == [1, 1]


def test_a_subject_without_a_sample_is_a_row_without_figures() -> None:
    results = made_up.results()
    assert results.comparison
    for of_load in results.comparison.samples.values():
        of_load[WARM] = [None] * 3
    assert row(runs.pages(results)["latest.md"], WARM)[1:7] == ["-"] * 6
    assert met(results)["gateway, warm key: p99 at 200/s"] is None
    assert met(results)["gateway, limits: p99 at 200/s"] is True


def test_spread_is_a_share_of_the_median() -> None:
    assert spread([90, 100, 120]) == "30%"


def test_a_table_has_as_many_rules_as_columns() -> None:
    text = table("what | a | b", [("x", "1", "2")])
    assert text.splitlines() == [
        "| what | a | b |",
        "| --- | ---: | ---: |",
        "| x | 1 | 2 |",
    ]


@pytest.mark.parametrize(
    ("goal", "is_met"),
    [
        (Goal("a", 3, "ms", [9.0, 3.0, 1.0]), True),
        (Goal("a", 3, "ms", [3.01]), False),
        (Goal("a", 0.95, "", [0.95], at_least=True), True),
        (Goal("a", 0.95, "", [0.94], at_least=True), False),
        (Goal("a", 3, "ms", []), None),
    ],
)
def test_a_goal_is_met_at_its_bound_and_never_where_nothing_was_measured(
    goal: Goal, is_met: bool | None
) -> None:
    assert goal.is_met is is_met


def test_goals_are_told_apart() -> None:
    found = met(made_up.results())
    assert found["gateway, warm key: throughput, of the floor's"] is True
    assert found["gateway, limits: throughput, of the floor's"] is False
    assert found["gateway, warm key: throughput, of LiteLLM's"] is True
    assert found["`authz serve` ready"] is True
    assert found["a body of 1 MiB: added to the floor's p50"] is True


def test_a_goal_without_its_peer_is_not_measured() -> None:
    results = made_up.results()
    assert results.comparison
    for of_load in results.comparison.samples.values():
        del of_load[LITELLM]
    assert met(results)["gateway, warm key: throughput, of LiteLLM's"] is None
    assert "not measured" in runs.page(results)


def test_what_was_kept_makes_the_same_pages(tmp_path: Path) -> None:
    results = made_up.results()
    runs.save(results, tmp_path)
    assert runs.pages(runs.load_latest(tmp_path)) == runs.pages(results)


def test_all_goals_stay_where_nothing_was_measured() -> None:
    nothing = Results(made_up.surroundings())
    assert list(met(nothing)) == list(met(made_up.results()))
    assert set(met(nothing).values()) == {None}


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_can_be_reported_alone(name: str) -> None:
    whole = made_up.results()
    alone = Results(whole.surroundings)
    setattr(alone, name, getattr(whole, name))
    assert runs.part(alone).count("\n## ") == 1


def test_notes_stand_with_the_goals() -> None:
    page = runs.page(made_up.results(), "Limits cost a round trip.")
    assert page.index("Limits cost a round trip.") < page.index("## Requests")


def test_notes_are_shown_with_the_run_that_they_explain_alone() -> None:
    notes = "<!-- run: 2026-01-02 03:04 UTC -->\nNothing else was run on it.\n"
    assert runs.notes_of("2026-01-02 03:04 UTC", notes).strip() == (
        "Nothing else was run on it."
    )
    for date, text in (
        ("2026-01-02 03:05 UTC", notes),
        ("2026-01-02 03:04 UTC", "Nothing else was run on it.\n"),
    ):
        assert runs.notes_of(date, text) == "Nobody has explained this run yet."


async def test_a_part_that_fails_costs_no_other() -> None:
    async def broken() -> None:
        msg = "a fault\nof any kind"
        raise ZeroDivisionError(msg)

    async def startup() -> object:
        return made_up.results().startup

    results = Results(made_up.surroundings())
    await runs.measure_all(results, {"comparison": broken, "startup": startup})
    page = runs.page(results)
    line = "- comparison: not measured: ZeroDivisionError: a fault of any kind\n"
    assert line in page
    assert line in runs.part(results)
    assert "## Start" in page


async def test_who_ends_a_run_ends_all_of_it() -> None:
    begun = asyncio.Event()

    async def unwinds_badly() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            msg = "a program would not end"
            raise ChildDied(msg)

    async def never() -> None:
        pytest.fail("the run went on")

    measures = {"comparison": unwinds_badly, "startup": never}
    results = Results(made_up.surroundings())
    run = asyncio.create_task(runs.measure_all(results, measures))
    await begun.wait()
    run.cancel()
    with pytest.raises(ChildDied):
        await run


@pytest.mark.parametrize(
    "peers",
    [
        ["=127.0.0.1:1"],
        ["opa=127.0.0.1:1", "opa=127.0.0.1:2"],
        ["floor=127.0.0.1:1"],
        ["LiteLLM=127.0.0.1:1"],
        ["a | b=127.0.0.1:1"],
        ["opa"],
    ],
)
def test_a_peer_needs_a_name_of_its_own(peers: list[str]) -> None:
    options = [word for peer in peers for word in ("--peer", peer)]
    result = CliRunner().invoke(main, options)
    assert (result.exit_code, "--peer" in result.output) == (2, True)


def test_a_page_says_where_it_was_measured() -> None:
    results = made_up.results()
    results.surroundings = replace(results.surroundings, cpu="Some processor")
    page = runs.page(results)
    for said in ("Some processor", "2026-01-02", "Envoy 1.40.0", "2 cores", "v1-g12"):
        assert said in page


def test_the_pages_in_the_repository_are_those_of_the_kept_figures() -> None:
    made = runs.pages(runs.load_latest())
    assert made == {name: (runs.FOLDER / name).read_text() for name in made}


def test_the_readme_shows_the_kept_figures() -> None:
    text = runs.README.read_text()
    assert runs.with_summary(text, runs.load_latest()) == text
