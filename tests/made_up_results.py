"""A run of the benchmark that never was, with figures easy to reckon with."""

from __future__ import annotations

from benchmarks.bodies import SIZES, Bodies
from benchmarks.comparison import Comparison, Cost
from benchmarks.comparison_tables import LOADS
from benchmarks.floods import Siege
from benchmarks.load import Crowd
from benchmarks.patterns import COUNTS, Patterns
from benchmarks.report import times
from benchmarks.results import Results
from benchmarks.revocation import Revocation
from benchmarks.scale import Listing, Scale
from benchmarks.startup import Startup
from benchmarks.strangers import Flood, Sent
from benchmarks.streams import GATEWAY, KEY_CHECK, NO_SCRIPT, Streams, StreamSample
from benchmarks.subjects import (
    COLD,
    ENVOY_ALONE,
    FLOOR,
    LIMITS,
    LITELLM,
    NATIVE_KEYS,
    PLAIN,
    RATES,
    TWO_WORKERS,
    WARM,
)
from benchmarks.surroundings import Surroundings

FEW = times([0.001, 0.002, 0.003])
PROGRAMS = ("envoy", "authz", "redis", "postgres", "both ends")
RPS = {
    ENVOY_ALONE: 9000.0,
    NATIVE_KEYS: 8000.0,
    FLOOR: 4000.0,
    WARM: 3900.0,
    RATES: 3000.0,
    LIMITS: 2800.0,
    COLD: 1000.0,
    TWO_WORKERS: 4200.0,
    PLAIN: 900.0,
    LITELLM: 100.0,
}


def results() -> Results:
    """Return a run in which everything was measured, in three rounds."""
    return Results(
        surroundings=surroundings(),
        comparison=comparison(),
        startup=Startup(serve=[1.0, 1.2, 1.4], up_fresh=[5.0], up_again=[4.0]),
        bodies=bodies(),
        patterns=Patterns({n: [1.0] for n in COUNTS}, {n: [200.0] for n in COUNTS}),
        streams=streams(),
        load=[crowd(1), crowd(10)],
        revocation=Revocation(FEW, FEW, FEW, FEW, FEW, FEW),
        scale=scale(),
        strangers=[flood(0), flood(8)],
        floods=[siege("nobody"), siege("rapid resets")],
    )


def surroundings() -> Surroundings:
    return Surroundings(
        date="2026-01-02 03:04 UTC",
        cores=2,
        cpu="A processor",
        load_before=0.1,
        load_after=2.0,
        versions={"Python": "3.11.0", "Envoy": "1.40.0"},
        commit="v1-g12",
    )


def comparison(rps: dict[str, list[float]] | None = None) -> Comparison:
    """Return samples; ``rps`` may give the rates of each round."""
    rates = {name: [rate] * 3 for name, rate in RPS.items()} | (rps or {})
    samples: dict[str, dict[str, list[Cost | None]]] = {
        load: {name: [cost(rate) for rate in rates[name]] for name in rates}
        for load in LOADS
    }
    memory = {name: {"envoy": 50_000, "service": 80_000} for name in rates}
    memory[ENVOY_ALONE] = {"envoy": 50_000}
    return Comparison(1, samples, ["floor at 1: 1 failures"], memory, memory)


def cost(rate: float, cpu_us: float = 200.0) -> Cost:
    each_ms = 1000 / rate
    of_all = {"envoy": 100.0, "service": cpu_us, "redis": 30.0, "postgres": 20.0}
    return Cost(rate, each_ms, each_ms * 2, of_all)


def bodies() -> Bodies:
    names = {ENVOY_ALONE: 0.5, FLOOR: 1.0, WARM: 3.0, PLAIN: 5.0}
    return Bodies({size: {n: [ms] * 3 for n, ms in names.items()} for size in SIZES})


def streams() -> Streams:
    sample = StreamSample(cpu_us=5, wall_us=20, first_p50_ms=0.8, first_p99_ms=1.1)
    names = (GATEWAY, NO_SCRIPT, KEY_CHECK, ENVOY_ALONE)
    return Streams({name: [sample] * 3 for name in names})


def crowd(count: int) -> Crowd:
    share = dict.fromkeys(PROGRAMS, count / 100)
    return Crowd(count, count, 100, FEW, share, dict.fromkeys(PROGRAMS, 50_000))


def scale() -> Scale:
    listing = Listing(seconds=10, size=1_000_000, peak_kb=90_000)
    steps = {1: FEW, 1_000_000: FEW}
    return Scale(1_000_000, 100_000, 200, steps, FEW, 70_000, 170_000, 20, listing)


def siege(attack: str) -> Siege:
    cpu = {"envoy": 0.5, "authz": 0.2}
    return Siege(attack, [FEW] * 3, {200: 1500}, cpu, most_kb=90_000, load_average=2.0)


def flood(sources: int) -> Flood:
    sent = Sent({503: 1000} if sources else {}, 10)
    share = {"envoy": 0.5, "authz": 0.4}
    return Flood(sources, sent, FEW, {200: 1000}, sources * 100, share, 1.5)
