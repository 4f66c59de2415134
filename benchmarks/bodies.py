"""What a body costs by its size: the time that is added to the floor's.

`python -m benchmarks --only bodies` measures this alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from operator import sub
from statistics import median
from typing import TYPE_CHECKING

import click

from benchmarks import subjects
from benchmarks.plots import lines
from benchmarks.report import paired, section, table
from benchmarks.subjects import ENVOY_ALONE, FLOOR, PLAIN, WARM
from benchmarks.wrk import Load, find_wrk, measure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.subjects import Subject

KIB = 1024
MIB = 1024 * KIB
# One more than 64 KiB is where Envoy asks twice.
SIZES = (KIB, 16 * KIB, 64 * KIB + 1, 256 * KIB, MIB, 10 * MIB)
_COMPARED = (ENVOY_ALONE, FLOOR, WARM, PLAIN)
_SECONDS, _LONG = 1, 3  # of a sample; the largest bodies take a tenth of a second
_TEXT = 'The quick brown fox said: "Jumps, over the lazy dog!"\n'
_ADDED = "added by the gateway, ms"


@dataclass(frozen=True, slots=True)
class Bodies:
    """The p50 in milliseconds by size and subject, one a round."""

    p50_ms: dict[int, dict[str, list[float]]]

    def added_ms(self, size: int) -> list[float]:
        """Return what the gateway adds to the floor, one a round."""
        here = self.p50_ms[size]
        return paired(here[WARM], here[FLOOR], sub)


async def measure_bodies(rounds: int) -> Bodies:
    """Measure in turns. Raises ConfigError, ChildDied, LoadFailed."""
    find_wrk()
    async with subjects.site() as site:
        compared = {name: await subjects.build(site, name) for name in _COMPARED}
        found: dict[int, dict[str, list[float]]] = {
            size: {name: [] for name in compared} for size in SIZES
        }
        for number in range(1, rounds + 1):
            for size, by_subject in found.items():
                click.echo(f"bodies, round {number}: {size:,} bytes", err=True)
                for name, subject in compared.items():
                    by_subject[name].append(await _p50_ms(subject, size))
        return Bodies(found)


async def _p50_ms(subject: Subject, size: int) -> float:
    (subject.target.folder / "body").write_bytes(body_of(size))
    load = Load(connections=1, seconds=_LONG if size > MIB else _SECONDS)
    return (await measure(subject.target, load)).p50_ms


def body_of(size: int) -> bytes:
    """Return a chat of so many bytes, most of them one message of text."""
    chat = {"model": "llama3.1", "stream": False, "messages": [{"role": "user"}]}
    chat["messages"] = [{"role": "user", "content": ""}]
    around = len(json.dumps(chat))
    text = json.dumps(_TEXT * (size // len(_TEXT) + 1))[1:-1][: size - around]
    # Not in the middle of an escape.
    text = text.rstrip("\\").ljust(size - around, ".")
    return json.dumps(chat).replace('""', f'"{text}"').encode()


def bodies_section(measured: Bodies) -> str:
    """Return the table of sizes."""
    rounds = len(measured.p50_ms[KIB][FLOOR])
    return section(
        "Bodies",
        table(
            f"body | {' | '.join(f'{name}, ms' for name in _COMPARED)} | {_ADDED}",
            [_row(measured, size) for size in SIZES],
        ),
        "![latency by size of the body](bodies.svg)",
        f"p50 of one connection, medians of {rounds} rounds of {_SECONDS} s (over "
        f"1 MiB {_LONG} s); a chat with one message of text. What is added is the "
        "median difference to the floor in the same round. From 64 KiB on Envoy asks "
        "twice, first who it is: the floor is asked twice, too.",
    )


def bodies_plots(measured: Bodies) -> Mapping[str, str]:
    """Return the plot."""
    curves = {
        name: [(size / KIB, median(measured.p50_ms[size][name])) for size in SIZES]
        for name in _COMPARED
    }
    plot = lines("Latency p50, ms", "KiB of body", curves, "gateway", log_y=True)
    return {"bodies.svg": plot}


def _row(measured: Bodies, size: int) -> Iterator[str]:
    yield _size(size)
    for name in _COMPARED:
        yield f"{median(measured.p50_ms[size][name]):.2f}"
    yield f"{median(measured.added_ms(size)):+.2f}"


def _size(size: int) -> str:
    if size >= MIB:
        return f"{size // MIB} MiB"
    rest = size % KIB
    return f"{size // KIB} KiB" + (f" + {rest}" if rest else "")
