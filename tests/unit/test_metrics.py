"""What is counted: bounded labels, and no trust in what anybody may announce."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest
from prometheus_client import CollectorRegistry

from authz.core.metering import Ending, Finished, Used
from authz.metrics import MOST_MODELS, Metrics

CHAT = Finished("r", "k", "o", "/api/chat", "h/n/m:t", began=0, status=200)
USED = Used(Ending.OK, 20, 300, estimated=False, settled=320)


class Counted:
    """Metrics, and what they say."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"authz_{name}", labels)

    def labels(self, name: str, label: str) -> set[str]:
        return {
            sample.labels[label]
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"authz_{name}"
        }


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_a_request_that_has_ended_is_counted_with_its_tokens(counted: Counted) -> None:
    counted.metrics.finished(CHAT, USED)
    ended = counted("requests_finished_total", endpoint="/api/chat", outcome="ok")
    assert ended == 1
    assert counted("tokens_total", direction="input", model="h/n/m:t") == 20
    assert counted("tokens_total", direction="output", model="h/n/m:t") == 300


def test_models_beyond_the_first_hundred_are_one(counted: Counted) -> None:
    for number in range(MOST_MODELS + 5):
        counted.metrics.finished(replace(CHAT, model=f"h/n/m:{number}"), USED)
    counted.metrics.finished(replace(CHAT, model="h/n/m:0"), USED)
    assert len(counted.labels("tokens_total", "model")) == MOST_MODELS + 1
    assert counted("tokens_total", direction="input", model="other") == 5 * 20
    assert counted("tokens_total", direction="input", model="h/n/m:0") == 2 * 20


def test_a_model_that_never_answered_is_no_label(counted: Counted) -> None:
    counted.metrics.finished(replace(CHAT, status=404), USED)
    assert counted.labels("tokens_total", "model") == {"other"}


def test_an_endpoint_that_is_no_route_is_no_label(counted: Counted) -> None:
    counted.metrics.finished(replace(CHAT, endpoint="/made/up"), USED)
    assert counted.labels("requests_finished_total", "endpoint") == {"other"}


@pytest.mark.parametrize("seconds", [-2, 601, 1e12, -1e12, inf, -inf, nan])
def test_an_absurd_moment_of_a_change_counts_for_nothing(
    counted: Counted, seconds: float
) -> None:
    counted.metrics.heard_after(seconds)
    assert counted("invalidation_lag_seconds_count") == 0


@pytest.mark.parametrize(("seconds", "noted"), [(-0.5, 0), (0, 0), (0.25, 0.25)])
def test_a_clock_that_is_a_little_ahead_makes_no_negative_lag(
    counted: Counted, seconds: float, noted: float
) -> None:
    counted.metrics.heard_after(seconds)
    assert counted("invalidation_lag_seconds_count") == 1
    assert counted("invalidation_lag_seconds_sum") == noted
