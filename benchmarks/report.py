"""The samples as tables in Markdown: medians, and what a subject adds. Pure."""

from __future__ import annotations

from statistics import median, quantiles
from typing import TYPE_CHECKING

from benchmarks.streams import CHUNKS, FIRST_CHUNKS, StreamSample
from benchmarks.subjects import KEY_CHECK, NO_SCRIPT
from benchmarks.wrk import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.revocation import Revocation
    from benchmarks.scale import Scale
    from benchmarks.wrk import Load

Samples = dict[str, list[Sample]]
StreamSamples = dict[str, list[StreamSample]]

_REQUESTS_HEADER = (
    "| connections | subject | requests/s | spread | p50 ms | p99 ms "
    "| requests/s of floor | p50 over floor, ms |\n"
    "|---:|---|---:|---:|---:|---:|---:|---:|"
)
_REVOCATION_HEADER = (
    "| from | to | samples | p50 ms | p99 ms | max ms |\n|---|---|---:|---:|---:|---:|"
)
_STREAMS_HEADER = (
    f"| subject | CPU µs a chunk | spread | over {NO_SCRIPT}, µs "
    "| wall µs a chunk | first chunk p50 ms | spread | p99 ms "
    f"| p50 over {KEY_CHECK}, ms |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def document(surroundings: Sequence[str], sections: Sequence[str]) -> str:
    """Return the report of a run."""
    lines = "\n".join(f"- {line}" for line in surroundings)
    return "\n\n".join(["# What the gateway costs", lines, *sections]) + "\n"


def requests_section(results: Mapping[Load, Samples]) -> str:
    """Return the table of whole requests; of each load, the first subject is floor."""
    rows = [
        _request_row(load, name, samples)
        for load, samples in results.items()
        for name in samples
    ]
    load, samples = next(iter(results.items()))
    rounds = len(next(iter(samples.values())))
    paragraphs = (
        "## Requests",
        "\n".join([_REQUESTS_HEADER, *rows]),
        f"Medians of {rounds} rounds; a round measures every subject for "
        f"{load.seconds} s at every number of connections, one after the other. "
        "Spread is the largest minus the smallest value, as a share of the median.",
        "`floor` is Envoy with a grpcio server that allows everything unread; "
        "`gateway` is Envoy with `authz serve`, PostgreSQL, Redis and a key in "
        "memory. Both have the same listener.yaml, and an Envoy that gives one "
        "constant answer stands behind both. wrk, the Envoys and the service share "
        "the cores named above, so the absolute rates are those of a small machine "
        "that is busy with measuring; compare the rows of one table only.",
    )
    return "\n\n".join(paragraphs)


def streams_section(samples: StreamSamples) -> str:
    """Return the table of streams."""
    rows = [_stream_row(name, samples) for name in samples]
    rounds = len(next(iter(samples.values())))
    paragraphs = (
        "## Streams",
        "\n".join([_STREAMS_HEADER, *rows]),
        f"Medians of {rounds} rounds, as above. A sample asks {FIRST_CHUNKS} times "
        "for a first chunk, which waits for the request at the upstream, and then "
        f"for streams of {CHUNKS:,} lines of NDJSON, each said when the last has "
        "arrived: every line is a chunk of its own, and a read and a write of Envoy.",
        f"All have the same `authz serve`. `{NO_SCRIPT}` is `gateway` less "
        f"gateway.lua; `{KEY_CHECK}` is Envoy with the check, the router and nothing "
        "else of listener.yaml. CPU is the time that Envoy's threads ran; the wall "
        "time is a round trip and has the client and the upstream in it. All share "
        "one core, on which nothing of a stream runs at once: these are the costs of "
        "warm caches, lower than those of a stream that trickles.",
    )
    return "\n\n".join(paragraphs)


def revocation_section(measured: Revocation) -> str:
    """Return the table of revocations."""
    cuts = measured.cuts
    rows = [
        _times_row("COMMIT of a revocation | last refusal", measured.revoked),
        _times_row("COMMIT of other models | last refusal", measured.models_changed),
        _times_row("cut of LISTEN | all listen again", [cut.deaf for cut in cuts]),
        _times_row(
            "COMMIT of a revocation meanwhile | last refusal",
            [seconds for cut in cuts for seconds in cut.refused],
        ),
        _times_row(
            "all listen again | last refusal of all these", [cut.late for cut in cuts]
        ),
    ]
    paragraphs = (
        "## Revocation",
        "\n".join([_REVOCATION_HEADER, *rows]),
        "Three replicas of `authz serve`, each with the key in memory, on one "
        "PostgreSQL and one Redis; all share the cores named above with the client. "
        "From the return of the COMMIT each replica is asked for the key again and "
        "again, every millisecond at most; a time ends with the refusal of the last, "
        "and has at least one call to each in it.",
        f"Beside it, {len(measured.load):,} Checks of other keys, evenly in time and "
        f"all allowed: {_percentiles(measured.load)}. LISTEN is cut by ending the "
        "server's processes of all three connections at once.",
    )
    return "\n\n".join(paragraphs)


def scale_section(measured: Scale) -> str:
    """Return what a million keys cost."""
    cold, listing = measured.cold, measured.listing
    rows = (
        f"| cold look-ups at {measured.cold_per_s} a second, {len(cold):,} keys "
        f"| {_percentiles(cold)}, max {max(cold) * 1e3:.1f} ms |",
        f"| memory of a worker that keeps {measured.cached:,} keys "
        f"| {_mb(measured.full_kb)}, of which {_mb(measured.empty_kb)} without them: "
        f"{measured.bytes_a_key:,.0f} bytes a key |",
        f"| asking for all of these once | {measured.filled:.0f} s, "
        f"{measured.cached / measured.filled:,.0f} a second |",
        f"| `authz keys list --json`, {measured.keys:,} keys "
        f"| {listing.seconds:.0f} s for "
        f"{listing.size / 1e6:.0f} MB, at most {_mb(listing.peak_kb)} of memory |",
    )
    paragraphs = (
        "## Scale",
        "\n".join(["| what | measured |", "|---|---|", *rows]),
        f"{measured.keys:,} keys in PostgreSQL, generated within "
        f"{measured.generated:.0f} s; "
        "one replica, without Redis. A look-up is cold when its key was never asked "
        "for; the time is that of the whole Check. Memory is what the kernel says "
        "is resident.",
    )
    return "\n\n".join(paragraphs)


def _mb(kilobytes: int) -> str:
    return f"{kilobytes * 1024 / 1e6:.0f} MB"


def _times_row(what: str, seconds: Sequence[float]) -> str:
    percentiles = quantiles(seconds, n=100, method="inclusive")
    times = (percentiles[49], percentiles[98], max(seconds))
    cells = (what, str(len(seconds)), *(f"{time * 1e3:.1f}" for time in times))
    return f"| {' | '.join(cells)} |"


def _percentiles(seconds: Sequence[float]) -> str:
    found = quantiles(seconds, n=100, method="inclusive")
    return f"p50 {found[49] * 1e3:.1f} ms, p99 {found[98] * 1e3:.1f} ms"


def _request_row(load: Load, name: str, samples: Samples) -> str:
    floor = _median(next(iter(samples.values())))
    here = _median(samples[name])
    cells = (
        str(load.connections),
        name,
        f"{here.rps:,.0f}",
        _spread([sample.rps for sample in samples[name]]),
        f"{here.p50_ms:.2f}",
        f"{here.p99_ms:.2f}",
        f"{here.rps / floor.rps:.0%}",
        f"{here.p50_ms - floor.p50_ms:+.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _stream_row(name: str, samples: StreamSamples) -> str:
    here = _stream_median(samples[name])
    added_us = here.cpu_us - _stream_median(samples[NO_SCRIPT]).cpu_us
    added_ms = here.first_p50_ms - _stream_median(samples[KEY_CHECK]).first_p50_ms
    cells = (
        name,
        f"{here.cpu_us:.1f}",
        _spread([sample.cpu_us for sample in samples[name]]),
        f"{added_us:+.1f}",
        f"{here.wall_us:.0f}",
        f"{here.first_p50_ms:.2f}",
        _spread([sample.first_p50_ms for sample in samples[name]]),
        f"{here.first_p99_ms:.2f}",
        f"{added_ms:+.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float]) -> str:
    return f"{(max(values) - min(values)) / median(values):.0%}"


def _median(samples: Sequence[Sample]) -> Sample:
    return Sample(
        rps=median(sample.rps for sample in samples),
        p50_ms=median(sample.p50_ms for sample in samples),
        p99_ms=median(sample.p99_ms for sample in samples),
    )


def _stream_median(samples: Sequence[StreamSample]) -> StreamSample:
    return StreamSample(
        cpu_us=median(sample.cpu_us for sample in samples),
        wall_us=median(sample.wall_us for sample in samples),
        first_p50_ms=median(sample.first_p50_ms for sample in samples),
        first_p99_ms=median(sample.first_p99_ms for sample in samples),
    )
