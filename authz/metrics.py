"""What is counted. One registry a process, handed in; no globals of ours."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from authz.core.endpoints import ENDPOINTS, OTHER
from authz.core.metering import recorded_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from authz.core.metering import Finished, Used
    from authz.core.model import Reason

# Half a millisecond is a warm key; two seconds is where Envoy gives up.
_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2)
# A few milliseconds are usual, half a second is how soon a lost line is noticed.
_LAG_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
# Any role may announce a change of any moment; clocks may differ by a second.
_AHEAD_S, _LONGEST_LAG_S = 1.0, 600.0

ALLOWED = "allowed"
# Names are the server's own, but whoever may copy models makes as many as he likes.
MOST_MODELS = 100
_READ_EVERY_S = 1.0

# Those that stand from the start: a rate sees no first time.
_SOURCES = (
    *("memory", "redis", "postgres", "stale"),
    *("undecided", "excess", "redis_error"),
)
_DROPPED_FOR = ("unreadable", "full", "uncertain")


class Metrics:
    """The metrics of one worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decisions = Counter(
            "authz_decisions",
            "Requests that were decided on, by why and route.",
            ["reason", "endpoint"],
            registry=registry,
        )
        self.allowed = {
            path: self._decisions.labels(ALLOWED, path) for path in ENDPOINTS
        }
        self.check_seconds = Histogram(
            "authz_check_seconds",
            "Time from CheckRequest to verdict.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.lookups = Counter(
            "authz_lookups",
            "Keys looked up, by where the answer came from.",
            ["source"],
            registry=registry,
        )
        for source in _SOURCES:
            self.lookups.labels(source)
        self.found_in_memory = self.lookups.labels("memory")
        self.limits_unshared = Counter(
            "authz_limits_unshared",
            "Calls for limits that were answered without Redis, which did not answer.",
            registry=registry,
        )
        self.usage_dropped = Counter(
            "authz_usage_dropped",
            "Requests that are not recorded, by why.",
            ["reason"],
            registry=registry,
        )
        for reason in _DROPPED_FOR:
            self.usage_dropped.labels(reason)
        self.settlements_dropped = Counter(
            "authz_settlements_dropped",
            "Requests whose estimate stays charged, as Redis was away for too long.",
            registry=registry,
        )
        self.limits_shared = Gauge(
            "authz_limits_shared",
            "1 while limits are counted in Redis, 0 while each process does.",
            registry=registry,
            multiprocess_mode="min",
        )
        self.waiting_for_slot = Gauge(
            "authz_requests_waiting_for_slot",
            "Requests that wait for another one of their key to end.",
            registry=registry,
            multiprocess_mode="sum",
        )
        self.listening = Gauge(
            "authz_listening",
            "1 while PostgreSQL's notifications of changed keys arrive.",
            registry=registry,
            multiprocess_mode="min",
        )
        self._invalidation_lag = Histogram(
            "authz_invalidation_lag_seconds",
            "Time from the change of a key to hearing of it.",
            buckets=_LAG_SECONDS,
            registry=registry,
        )
        finished = Counter(
            "authz_requests_finished",
            "Allowed requests that have ended, by route and how.",
            ["endpoint", "outcome"],
            registry=registry,
        )
        tokens = Counter(
            "authz_tokens",
            "Tokens of requests that have ended, counted or estimated.",
            ["direction", "model"],
            registry=registry,
        )
        # Every request counts in both; finding a counter by its labels takes longer
        # than counting.
        self._finished = cache(finished.labels)
        self._tokens = cache(
            lambda model: (
                tokens.labels("input", model),
                tokens.labels("output", model),
            )
        )
        self._models: set[str] = set()
        self.pools = Pools(registry)

    def denied(self, reason: Reason, endpoint: str) -> None:
        """Count a request that is refused on a route, or on OTHER."""
        self._decisions.labels(reason.value, endpoint).inc()

    def heard_after(self, seconds: float) -> None:
        """Note how long after a change of a key a notification said so."""
        if -_AHEAD_S < seconds < _LONGEST_LAG_S:
            self._invalidation_lag.observe(max(seconds, 0.0))

    def finished(self, finished: Finished, used: Used) -> None:
        """Count a request that has ended, and its tokens."""
        endpoint = finished.endpoint if finished.endpoint in ENDPOINTS else OTHER
        self._finished(endpoint, used.ending).inc()
        if used.input_tokens or used.output_tokens:
            inputs, outputs = self._tokens(self._model(recorded_model(finished)))
            inputs.inc(used.input_tokens)
            outputs.inc(used.output_tokens)

    def _model(self, name: str) -> str:
        """Return what a model is counted as: the first ones have a name."""
        if name and len(self._models) < MOST_MODELS:
            self._models.add(name)
        return name if name in self._models else OTHER


class Pools:
    """What is kept ready or waits, read now and then."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.connections_open = Gauge(
            "authz_postgres_connections_open",
            "Connections for look-ups that are open.",
            registry=registry,
            multiprocess_mode="sum",
        )
        self.connections_used = Gauge(
            "authz_postgres_connections_used",
            "Connections for look-ups that are in use.",
            registry=registry,
            multiprocess_mode="sum",
        )
        self.connections_most = Gauge(
            "authz_postgres_connections_most",
            "Connections for look-ups that may be open.",
            registry=registry,
            multiprocess_mode="sum",
        )
        self.large_bodies = Gauge(
            "authz_large_bodies_bytes",
            "Large bodies that are being read or wait for that.",
            registry=registry,
            multiprocess_mode="sum",
        )
        self.usage_waiting = Gauge(
            "authz_usage_waiting",
            "Requests that have ended and are not recorded yet.",
            registry=registry,
            multiprocess_mode="sum",
        )

    async def keep_reading(self, values: Mapping[Gauge, Callable[[], float]]) -> None:
        """Set the gauges once a second, until cancelled.

        With several workers a gauge cannot ask when it is read.
        """
        while True:
            for gauge, value in values.items():
                gauge.set(value())
            await asyncio.sleep(_READ_EVERY_S)
