"""What the gateway adds to a request, beside others: latency, throughput, processor.

Subjects take turns at every load and in every round, so that noise hits all alike.
`python -m benchmarks --only comparison` measures this alone.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import click

from benchmarks import subjects
from benchmarks.peers import litellm
from benchmarks.processes import cpu_of_families, memory_of_families
from benchmarks.wrk import Load, LoadFailed, find_wrk, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from authz.local.envoy import Address
    from benchmarks.subjects import Site, Subject
    from benchmarks.wrk import Sample

CONNECTIONS = (1, 8, 32)
SATURATION = CONNECTIONS[-1]
PER_S = 200
_STEADY_CONNECTIONS = 32
# LiteLLM needs seconds for its first answer; nobody is measured by that.
_GREETING = Load(connections=1, seconds=1, per_s=5)
_WARM_UP = Load(connections=8, seconds=2)
# More than this machine can ask with in a second of each load.
_COLD_KEYS_A_SECOND = 10_000


@dataclass(frozen=True, slots=True)
class Cost:
    """One sample; ``cpu_us`` is what each process ran for a request."""

    rps: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Samples by load and subject, one a round, and resident kB of each process.

    ``repeated`` says which samples had failures and were taken again.
    """

    seconds: int
    samples: dict[str, dict[str, list[Cost]]]
    repeated: list[str]
    idle_kb: dict[str, dict[str, int]]
    used_kb: dict[str, dict[str, int]]

    def figures(
        self, load: str, subject: str, figure: Callable[[Cost], float]
    ) -> Sequence[float]:
        """Return a figure of each round; none where the subject was not there."""
        return [figure(cost) for cost in self.samples[load].get(subject, ())]

    def middle(self, load: str, subject: str, figure: Callable[[Cost], float]) -> float:
        """Return a figure's median."""
        return median(self.figures(load, subject, figure))


async def measure_comparison(
    rounds: int, seconds: int, others: Mapping[str, Address]
) -> Comparison:
    """Measure all subjects, and services of others that listen at these addresses.

    Raises ConfigError, ChildDied, LoadFailed.
    """
    find_wrk()
    cold_keys = _COLD_KEYS_A_SECOND * seconds * (rounds + 1)
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(subjects.site(cold_keys))
        compared = await _build_all(site, others)
        idle = {name: memory_of_families(one.pids) for name, one in compared.items()}
        for name, subject in compared.items():
            click.echo(f"comparison, warm-up: {name}", err=True)
            await measure(subject.target, _GREETING)
            await _sample(subject, _WARM_UP)
        samples, repeated = await _rounds(rounds, seconds, compared)
        used = {name: memory_of_families(one.pids) for name, one in compared.items()}
        return Comparison(seconds, samples, repeated, idle, used)


async def _build_all(site: Site, others: Mapping[str, Address]) -> dict[str, Subject]:
    names = list(subjects.ALL)
    if litellm.version() is None:
        click.echo("LiteLLM is left out: `make bench` installs it", err=True)
        names.remove(subjects.LITELLM)
    compared = {}
    for name in names:
        click.echo(f"comparison, start: {name}", err=True)
        compared[name] = await subjects.build(site, name)
    for name, address in others.items():
        compared[name] = await site.behind_listener(name, address)
    return compared


async def _rounds(
    rounds: int, seconds: int, compared: Mapping[str, Subject]
) -> tuple[dict[str, dict[str, list[Cost]]], list[str]]:
    """Return the samples, and what went wrong with some of them at first."""
    loads = list(_loads(seconds))
    repeated = []
    samples: dict[str, dict[str, list[Cost]]] = {
        load.name: {name: [] for name in compared} for load in loads
    }
    for number in range(1, rounds + 1):
        for load in loads:
            click.echo(f"comparison, round {number}: {load.name}", err=True)
            for name, subject in compared.items():
                try:
                    cost = await _cost(subject, load)
                except LoadFailed as error:
                    repeated.append(f"{name} at {load.name}: {error}")
                    cost = await _cost(subject, load)
                samples[load.name][name].append(cost)
    return samples, repeated


def _loads(seconds: int) -> Iterator[Load]:
    for connections in CONNECTIONS:
        yield Load(connections, seconds)
    yield Load(_STEADY_CONNECTIONS, seconds, PER_S)


async def _cost(subject: Subject, load: Load) -> Cost:
    before = cpu_of_families(subject.pids)
    sample = await _sample(subject, load)
    after = cpu_of_families(subject.pids)
    cpu_us = {
        name: (after[name] - before[name]) / sample.requests * 1e6 for name in after
    }
    return Cost(sample.rps, sample.p50_ms, sample.p99_ms, cpu_us)


async def _sample(subject: Subject, load: Load) -> Sample:
    seconds = max(load.seconds, subject.least_seconds)
    return await measure(subject.target, replace(load, seconds=seconds))
