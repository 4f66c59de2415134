"""What is counted. One registry a process, handed in; no globals of ours."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

# Half a millisecond is a warm key; two seconds is where Envoy gives up.
_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2)


class Metrics:
    """The metrics of one worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.checks = Counter(
            "authz_checks",
            "Verdicts, by what the client was told.",
            ["code"],
            registry=registry,
        )
        self.allowed = self.checks.labels("ok")
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
