"""The comparison as tables and plots. Pure."""

from __future__ import annotations

from operator import sub, truediv
from typing import TYPE_CHECKING

from benchmarks.comparison import CONNECTIONS, PER_S, Comparison, Cost
from benchmarks.plots import bars, lines
from benchmarks.report import NOTHING, mb, middle, paired, section, spread, table
from benchmarks.subjects import (
    COLD,
    ENVOY_ALONE,
    FLOOR,
    LIMITS,
    LITELLM,
    PLAIN,
    RATES,
    WARM,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Figure = Callable[[Cost], float]

LOADS = (*map(str, CONNECTIONS), f"{PER_S}/s")
_STORES = ("postgres", "redis")
_COST_HEADER = (
    "subject | requests/s | at connections | spread | of floor | CPU of Envoy, µs "
    "| of the service | of the stores | service's RSS idle | used"
)
_SUMMARY_HEADER = (
    "subject | requests/s | at connections | of floor | p50 ms, 1 connection "
    f"| over floor | p99 ms at {PER_S}/s"
)
_PLOTTED = (ENVOY_ALONE, FLOOR, WARM, LIMITS, COLD, PLAIN, LITELLM)


def rps(cost: Cost) -> float:
    """Return a sample's rate."""
    return cost.rps


def p50(cost: Cost) -> float:
    """Return a sample's median."""
    return cost.p50_ms


def p99(cost: Cost) -> float:
    """Return a sample's 99th percentile."""
    return cost.p99_ms


def times_of(measured: Comparison, subject: str, other: str) -> list[float]:
    """Return how many times the other's throughput a subject has, one a round.

    Each at its best load. None where one of them was not there.
    """
    here, there = (
        measured.rounds(measured.best(name), name, rps) for name in (subject, other)
    )
    return paired(here, there, truediv) if here and there else []


def added(measured: Comparison, load: str, subject: str, figure: Figure) -> list[float]:
    """Return what a subject adds to the floor's figure, one a round."""
    here = measured.rounds(load, subject, figure)
    return paired(here, measured.rounds(load, FLOOR, figure), sub)


def comparison_section(measured: Comparison) -> str:
    """Return the tables of all subjects."""
    names = _names(measured)
    rounds = len(measured.samples[LOADS[0]][FLOOR])
    return section(
        "Requests",
        "Each subject at that number of connections at which the median of its rate is "
        f"best, of {', '.join(map(str, CONNECTIONS))}:",
        table(_COST_HEADER, [_cost_row(measured, name) for name in names]),
        "![requests a second](throughput.svg)",
        "Latency, ms, by connections that ask again as soon as they are answered, and "
        f"at {PER_S} requests a second from the moment that each was due:",
        table(_latency_header(), [_latency_row(measured, name) for name in names]),
        "![latency by connections](latency.svg)",
        "What is added to the floor, ms:",
        table(_latency_header(), [_added_row(measured, name) for name in names]),
        f"Medians of {rounds} rounds; a round measures every subject for "
        f"{measured.seconds} s at each load, each time in another order. Shares (of "
        "each at its best by the floor at its best) and differences are those to the "
        "floor of the same round, and their median. "
        "Spread is the largest less the smallest value, as a share of the median. CPU "
        "is for one request at the same load; what the stores have still to do for "
        "other subjects is in their column. RSS is that of all processes of the "
        "service, before the first request and after the last.",
        *_legend(),
        *_repeated(measured),
    )


def summary_table(measured: Comparison) -> str:
    """Return what a reader in a hurry wants to know."""
    alone, evenly = LOADS[0], LOADS[-1]
    rows = [
        (
            name,
            *_rate(measured, name),
            middle(times_of(measured, name, FLOOR), ".0%"),
            middle(measured.figures(alone, name, p50), ",.2f"),
            middle(added(measured, alone, name, p50), "+,.2f"),
            middle(measured.figures(evenly, name, p99), ",.1f"),
        )
        for name in _names(measured)
    ]
    return table(_SUMMARY_HEADER, rows)


def _legend() -> Iterator[str]:
    yield (
        f"All send one small chat to `/v1/chat/completions` and have one model server "
        f"behind them, an Envoy that gives one constant answer. `{FLOOR}` is a grpcio "
        "server that allows everything unread, behind the same listener.yaml as the "
        "gateways: Envoy, `authz serve`, PostgreSQL and Redis. Their keys: in memory "
        f"(`{WARM}`, and with 2 workers), with rpm and tpm alone (`{RATES}`) or "
        f"all four limits (`{LIMITS}`; both are two round trips to Redis, to reserve "
        f"and to settle), never seen before (`{COLD}`, looked up in Redis and "
        f"PostgreSQL). `{ENVOY_ALONE}` has a route and nothing else, `api_key_auth` "
        "compares with one key in its configuration: neither looks at models, makes "
        "request ids, cleans errors or counts tokens."
    )
    yield (
        f"`{PLAIN}` is benchmarks/peers/plain_gateway.py: the checks of key, path and "
        "model, without limits and usage, one worker with uvloop and httptools. "
        f"`{LITELLM}` is its proxy with a master key, one worker, no database, as its "
        "page on production advises (benchmarks/peers/litellm.yaml), and reads HTTP by "
        "h11: httptools is none of its dependencies. Its samples last 5 s, for an "
        "answer may take one. Where a subject "
        f"cannot answer {PER_S} a second, that column is too good for it: what was "
        "never sent counts as if it were answered at the end."
    )
    yield (
        "wrk or the client in Python, the Envoys and all services share the cores "
        "named above: the absolute rates are those of a small machine that is busy "
        "with measuring. Compare the rows of one table only."
    )


def _repeated(measured: Comparison) -> Iterator[str]:
    if measured.repeated:
        yield "Taken again: " + "; ".join(measured.repeated) + "."
    if measured.missing:
        yield "Failed again, so that this is missing: " + (
            "; ".join(measured.missing) + "."
        )


def _names(measured: Comparison) -> Sequence[str]:
    return list(measured.samples[LOADS[0]])


def _rate(measured: Comparison, name: str) -> tuple[str, str]:
    """Return a subject's best rate, and at how many connections it was."""
    best = measured.best(name)
    rates = measured.figures(best, name, rps)
    return middle(rates, ",.0f"), best if rates else NOTHING


def _cost_row(measured: Comparison, name: str) -> Iterator[str]:
    yield from (name, *_rate(measured, name))
    yield spread(measured.figures(measured.best(name), name, rps))
    yield middle(times_of(measured, name, FLOOR), ".0%")
    for processes in (("envoy",), ("service",), _STORES):
        yield _cpu(measured, name, processes)
    for memory in (measured.idle_kb[name], measured.used_kb[name]):
        yield mb(memory["service"]) if "service" in memory else NOTHING


def _cpu(measured: Comparison, name: str, processes: Sequence[str]) -> str:
    if not measured.idle_kb[name].keys() & set(processes):
        return NOTHING

    def spent(cost: Cost) -> float:
        return sum(cost.cpu_us.get(process, 0) for process in processes)

    return middle(measured.figures(measured.best(name), name, spent), ".0f")


def _latency_header() -> str:
    return "subject | " + " | ".join(f"{load} p50 | p99" for load in LOADS)


def _latency_row(measured: Comparison, name: str) -> Iterator[str]:
    yield name
    for load in LOADS:
        for figure in (p50, p99):
            yield middle(measured.figures(load, name, figure), ",.2f")


def _added_row(measured: Comparison, name: str) -> Iterator[str]:
    yield name
    for load in LOADS:
        for figure in (p50, p99):
            yield middle(added(measured, load, name, figure), "+,.2f")


def comparison_plots(measured: Comparison) -> Mapping[str, str]:
    """Return the plots by file."""
    rates = {
        name: measured.middle(measured.best(name), name, rps) or 0
        for name in _names(measured)
    }
    curves = {
        name: points for name in _PLOTTED if (points := _latencies(measured, name))
    }
    if not curves:
        return {}
    return {
        "throughput.svg": bars(
            "Requests a second, each at its best number of connections",
            rates,
            own="gateway",
        ),
        "latency.svg": lines(
            "Latency p50, ms", "connections", curves, own="gateway", log_y=True
        ),
    }


def _latencies(measured: Comparison, name: str) -> Sequence[tuple[float, float]]:
    """Return the points of a subject's curve that were measured."""
    found = [(n, measured.middle(str(n), name, p50)) for n in CONNECTIONS]
    return [(float(n), value) for n, value in found if value is not None]
