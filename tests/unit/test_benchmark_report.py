"""What the report of a benchmark says of its samples."""

from __future__ import annotations

from dataclasses import replace
from operator import truediv
from statistics import median
from typing import TYPE_CHECKING

import pytest

from benchmarks import results as runs
from benchmarks.comparison_tables import of_floor, times_of
from benchmarks.goals import Goal, goals
from benchmarks.report import paired, spread, table, times
from benchmarks.results import MEASURES, Results
from benchmarks.subjects import FLOOR, LITELLM, WARM
from tests import made_up_results as made_up

if TYPE_CHECKING:
    from pathlib import Path


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
    assert median(of_floor(made_up.comparison(rates), WARM)) == 0.95


def test_a_peer_is_taken_at_its_best() -> None:
    measured = made_up.comparison()
    measured.samples["8"][LITELLM] = [made_up.cost(390)] * 3
    assert times_of(measured, WARM, LITELLM) == [10, 10, 10]


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


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_can_be_reported_alone(name: str) -> None:
    whole = made_up.results()
    alone = Results(whole.surroundings)
    setattr(alone, name, getattr(whole, name))
    assert runs.part(alone).count("\n## ") == 1


def test_notes_stand_with_the_goals() -> None:
    page = runs.page(made_up.results(), "Limits cost a round trip.")
    assert page.index("Limits cost a round trip.") < page.index("## Requests")


def test_a_page_says_where_it_was_measured() -> None:
    results = made_up.results()
    results.surroundings = replace(results.surroundings, cpu="Some processor")
    page = runs.page(results)
    for said in ("Some processor", "2026-01-02", "Envoy 1.40.0", "2 cores"):
        assert said in page


def test_the_pages_in_the_repository_are_those_of_the_kept_figures() -> None:
    made = runs.pages(runs.load_latest())
    assert made == {name: (runs.FOLDER / name).read_text() for name in made}


def test_the_readme_shows_the_kept_figures() -> None:
    text = runs.README.read_text()
    assert runs.with_summary(text, runs.load_latest()) == text
