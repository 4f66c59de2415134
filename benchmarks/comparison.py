"""What the gateway adds to a request, beside others: latency, throughput, processor.

Subjects take turns at every load and in every round, so that noise hits all alike,
and each time in another order: what one leaves to be done in the background falls to
the next.
`python -m benchmarks --only comparison` measures this alone.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import click

from benchmarks import subjects
from benchmarks.peers import litellm
from benchmarks.processes import cpu_of_families, memory_of_families
from benchmarks.report import in_a_line
from benchmarks.wrk import COLD_KEYS_A_SECOND, Load, LoadFailed, find_wrk, measure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from authz.local.envoy import Address
    from benchmarks.subjects import Site, Subject
    from benchmarks.wrk import Sample

_Taken = TypeVar("_Taken")

CONNECTIONS = (1, 8, 32)
PER_S = 200
_STEADY_CONNECTIONS = 32
# LiteLLM needs seconds for its first answer; nobody is measured by that.
_GREETING = Load(connections=1, seconds=1, per_s=5)
_WARM_UP = Load(connections=8, seconds=2)


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

    ``repeated`` says which samples had failures and were taken again, ``missing``
    which failed again: these are None.
    """

    seconds: int
    samples: dict[str, dict[str, list[Cost | None]]]
    repeated: list[str]
    idle_kb: dict[str, dict[str, int]]
    used_kb: dict[str, dict[str, int]]
    missing: list[str] = field(default_factory=list)

    def rounds(
        self, load: str, subject: str, figure: Callable[[Cost], float]
    ) -> Sequence[float | None]:
        """Return a figure of each round; none where the subject was not there."""
        samples = self.samples.get(load, {}).get(subject, ())
        return [figure(cost) if cost else None for cost in samples]

    def figures(
        self, load: str, subject: str, figure: Callable[[Cost], float]
    ) -> Sequence[float]:
        """Return a figure of each round that has it."""
        found = self.rounds(load, subject, figure)
        return [value for value in found if value is not None]

    def middle(
        self, load: str, subject: str, figure: Callable[[Cost], float]
    ) -> float | None:
        """Return a figure's median."""
        found = self.figures(load, subject, figure)
        return median(found) if found else None

    def best(self, subject: str) -> str:
        """Return the load, of those by connections, at which its rate is best."""
        loads = map(str, CONNECTIONS)
        return max(
            loads, key=lambda load: self.middle(load, subject, lambda c: c.rps) or 0
        )


NOT_MEASURED = Comparison(0, {}, [], {}, {})


@dataclass
class _Failures:
    """What failed at first, and what failed again."""

    repeated: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    async def twice(
        self, what: str, take: Callable[[], Awaitable[_Taken]]
    ) -> _Taken | None:
        """Take a sample, and take it again if it fails; None if that fails, too."""
        for failed in (self.repeated, self.missing):
            try:
                return await take()
            except LoadFailed as error:
                click.echo(f"comparison, failed: {what}: {error}", err=True)
                failed.append(in_a_line(f"{what}: {error}"))
        return None


async def measure_comparison(
    rounds: int, seconds: int, others: Mapping[str, Address]
) -> Comparison:
    """Measure all subjects, and services of others that listen at these addresses.

    Raises ConfigError, ChildDied. What fails under load costs that sample alone.
    """
    find_wrk()
    loads = list(_loads(seconds))
    cold_keys = COLD_KEYS_A_SECOND * seconds * len(loads) * (rounds + 1)
    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(subjects.site(cold_keys))
        compared = await _build_all(site, others)
        idle = {name: memory_of_families(one.pids) for name, one in compared.items()}
        failures = _Failures()
        for name, subject in compared.items():
            click.echo(f"comparison, warm-up: {name}", err=True)
            await failures.twice(f"{name}, warm-up", partial(_warm_up, subject))
        samples = await _rounds(rounds, loads, compared, failures)
        used = {name: memory_of_families(one.pids) for name, one in compared.items()}
        return Comparison(
            seconds, samples, failures.repeated, idle, used, failures.missing
        )


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
    rounds: int,
    loads: Sequence[Load],
    compared: Mapping[str, Subject],
    failures: _Failures,
) -> dict[str, dict[str, list[Cost | None]]]:
    samples: dict[str, dict[str, list[Cost | None]]] = {
        load.name: {name: [] for name in compared} for load in loads
    }
    orders = Random(0)  # noqa: S311 - the same in every run, and no secret
    for number in range(1, rounds + 1):
        for load in loads:
            click.echo(f"comparison, round {number}: {load.name}", err=True)
            for name in orders.sample(list(compared), len(compared)):
                what = f"{name} at {load.name}, round {number}"
                cost = await failures.twice(what, partial(_cost, compared[name], load))
                samples[load.name][name].append(cost)
    return samples


def _loads(seconds: int) -> Iterator[Load]:
    for connections in CONNECTIONS:
        yield Load(connections, seconds)
    yield Load(_STEADY_CONNECTIONS, seconds, PER_S)


async def _warm_up(subject: Subject) -> None:
    await measure(subject.target, _GREETING)
    await _sample(subject, _WARM_UP)


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
