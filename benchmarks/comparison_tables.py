"""The comparison as tables and plots. Pure."""

from __future__ import annotations

from operator import sub, truediv
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.comparison import CONNECTIONS, PER_S, SATURATION, Comparison, Cost
from benchmarks.plots import bars, lines
from benchmarks.report import mb, paired, section, spread, table
from benchmarks.subjects import COLD, ENVOY_ALONE, FLOOR, LIMITS, LITELLM, PLAIN, WARM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Figure = Callable[[Cost], float]

LOADS = (*map(str, CONNECTIONS), f"{PER_S}/s")
_FULL = str(SATURATION)
_STORES = ("postgres", "redis")
_COST_HEADER = (
    "subject | requests/s | spread | of floor | CPU of Envoy, µs | of the service "
    "| of the stores | service's RSS idle | used"
)
_SUMMARY_HEADER = (
    f"subject | requests/s | of floor | p50 ms, 1 connection | over floor "
    f"| p99 ms at {PER_S}/s"
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


def of_floor(measured: Comparison, subject: str) -> list[float]:
    """Return the subject's shares of the floor's throughput, one a round."""
    here = measured.figures(_FULL, subject, rps)
    return paired(here, measured.figures(_FULL, FLOOR, rps), truediv)


def times_of(measured: Comparison, subject: str, other: str) -> list[float]:
    """Return how many times the other's throughput a subject has, one a round.

    None where the other was not there. It is taken at its best: answers that take
    long are cut off by the end of a sample.
    """
    loads = [measured.figures(str(number), other, rps) for number in CONNECTIONS]
    best = [max(of_round) for of_round in zip(*loads, strict=True)]
    return paired(measured.figures(_FULL, subject, rps), best, truediv) if best else []


def added(measured: Comparison, load: str, subject: str, figure: Figure) -> list[float]:
    """Return what a subject adds to the floor's figure, one a round."""
    here = measured.figures(load, subject, figure)
    return paired(here, measured.figures(load, FLOOR, figure), sub)


def comparison_section(measured: Comparison) -> str:
    """Return the tables of all subjects."""
    names = list(measured.samples[_FULL])
    rounds = len(measured.samples[_FULL][FLOOR])
    return section(
        "Requests",
        f"At {SATURATION} connections, which is all that two cores can do:",
        table(_COST_HEADER, [_cost_row(measured, name) for name in names]),
        "![requests a second](throughput.svg)",
        "Latency, ms, by connections that ask again as soon as they are answered, and "
        f"at {PER_S} requests a second from the moment that each was due:",
        table(_latency_header(), [_latency_row(measured, name) for name in names]),
        "![latency by connections](latency.svg)",
        "What is added to the floor, ms:",
        table(_latency_header(), [_added_row(measured, name) for name in names]),
        f"Medians of {rounds} rounds; a round measures every subject for "
        f"{measured.seconds} s at each load, one after the other. Shares and "
        "differences are those to the floor of the same round, and their median. "
        "Spread is the largest less the smallest value, as a share of the median. CPU "
        "is for one request; RSS is that of all processes of the service, before the "
        "first request and after the last.",
        *_legend(),
        *_repeated(measured),
    )


def summary_table(measured: Comparison) -> str:
    """Return what a reader in a hurry wants to know."""
    alone, evenly = LOADS[0], LOADS[-1]
    rows = [
        (
            name,
            f"{measured.middle(_FULL, name, rps):,.0f}",
            f"{median(of_floor(measured, name)):.0%}",
            f"{measured.middle(alone, name, p50):,.2f}",
            f"{median(added(measured, alone, name, p50)):+,.2f}",
            f"{measured.middle(evenly, name, p99):,.1f}",
        )
        for name in measured.samples[_FULL]
    ]
    return table(_SUMMARY_HEADER, rows)


def _legend() -> Iterator[str]:
    yield (
        f"All send one small chat to `/v1/chat/completions` and have one model server "
        f"behind them, an Envoy that gives one constant answer. `{FLOOR}` is a grpcio "
        "server that allows everything unread, behind the same listener.yaml as the "
        "gateways: Envoy, `authz serve`, PostgreSQL and Redis. Their keys: in memory "
        f"(`{WARM}`, and with 2 workers), with all four limits (`{LIMITS}`, a round "
        f"trip to Redis), never seen before (`{COLD}`, looked up in Redis and "
        f"PostgreSQL). `{ENVOY_ALONE}` has a route and nothing else, `api_key_auth` "
        "compares with one key in its configuration: neither looks at models, makes "
        "request ids, cleans errors or counts tokens."
    )
    yield (
        f"`{PLAIN}` is benchmarks/peers/plain_gateway.py: the checks of key, path and "
        "model, without limits and usage, one worker with uvloop and httptools. "
        f"`{LITELLM}` is its proxy with a master key, one worker, no database, as its "
        "page on production advises (benchmarks/peers/litellm.yaml); its samples last "
        "5 s, for an answer may take one. Where a subject "
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


def _cost_row(measured: Comparison, name: str) -> Iterator[str]:
    rates = measured.figures(_FULL, name, rps)
    yield from (name, f"{median(rates):,.0f}", spread(rates))
    yield f"{median(of_floor(measured, name)):.0%}"
    for processes in (("envoy",), ("service",), _STORES):
        yield _cpu(measured, name, processes)
    for memory in (measured.idle_kb[name], measured.used_kb[name]):
        yield mb(memory["service"]) if "service" in memory else "-"


def _cpu(measured: Comparison, name: str, processes: Sequence[str]) -> str:
    if not measured.samples[_FULL][name][0].cpu_us.keys() & set(processes):
        return "-"

    def spent(cost: Cost) -> float:
        return sum(cost.cpu_us.get(process, 0) for process in processes)

    return f"{measured.middle(_FULL, name, spent):.0f}"


def _latency_header() -> str:
    return "subject | " + " | ".join(f"{load} p50 | p99" for load in LOADS)


def _latency_row(measured: Comparison, name: str) -> Iterator[str]:
    yield name
    for load in LOADS:
        for figure in (p50, p99):
            yield f"{measured.middle(load, name, figure):,.2f}"


def _added_row(measured: Comparison, name: str) -> Iterator[str]:
    yield name
    for load in LOADS:
        for figure in (p50, p99):
            yield f"{median(added(measured, load, name, figure)):+,.2f}"


def comparison_plots(measured: Comparison) -> Mapping[str, str]:
    """Return the plots by file."""
    names = list(measured.samples[_FULL])
    rates = {name: measured.middle(_FULL, name, rps) for name in names}
    curves = {
        name: [
            (float(connections), measured.middle(str(connections), name, p50))
            for connections in CONNECTIONS
        ]
        for name in _PLOTTED
        if name in names
    }
    return {
        "throughput.svg": bars(
            f"Requests a second, {SATURATION} connections", rates, own="gateway"
        ),
        "latency.svg": lines(
            "Latency p50, ms", "connections", curves, own="gateway", log_y=True
        ),
    }
