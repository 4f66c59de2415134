"""How long it takes until `authz serve` is ready, and `authz up` says so.

`python -m benchmarks --only startup` measures this alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import click

from authz.local.process import running, wait_until_ready
from authz.local.stack import free_port
from benchmarks.parts import starting
from benchmarks.report import section, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.parts import Stores

SERVES, UPS = 5, 2
_MOST_S = 60.0


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds, one a start; a fresh `authz up` makes its database first."""

    serve: list[float]
    up_fresh: list[float]
    up_again: list[float]


async def measure_startup() -> Startup:
    """Measure. Raises ConfigError, ChildDied."""
    async with starting() as parts:
        stores = await parts.stores()
        click.echo("start of authz serve", err=True)
        serve = [await _serve(stores) for _ in range(SERVES)]
        click.echo("start of authz up", err=True)
        folders = [parts.folder(f"up-{number}") for number in range(UPS)]
        fresh = [await _up(folder) for folder in folders]
        again = [await _up(folder) for folder in folders]
        return Startup(serve, fresh, again)


async def _serve(stores: Stores) -> float:
    async with starting() as parts:
        start = perf_counter()
        await parts.authz("serve", stores)
        return perf_counter() - start


async def _up(folder: Path) -> float:
    data_dir, log = folder / "data", folder / "log"
    command = (
        *(sys.executable, "-m", "authz", "up"),
        *("--listen", f"127.0.0.1:{free_port()}"),
        *("--data-dir", str(data_dir)),
    )
    already = len(_said(log))
    start = perf_counter()
    async with running("authz up", command, log=log, env=_environment()) as child:

        async def ready() -> bool:
            await asyncio.sleep(0)
            return any(line.startswith("ready ") for line in _said(log)[already:])

        await wait_until_ready(child, ready, _MOST_S)
        return perf_counter() - start


def _environment() -> dict[str, str]:
    """Return ours without the settings of another gateway."""
    ours = {name: value for name, value in os.environ.items() if "AUTHZ_" not in name}
    return ours | {"PYTHONUNBUFFERED": "1"}


def _said(log: Path) -> Sequence[str]:
    return log.read_text().splitlines() if log.exists() else ()


def startup_section(measured: Startup) -> str:
    """Return the table of starts."""
    rows = (
        ("`authz serve`, until /readyz says so", measured.serve),
        ("`authz up` in a new folder, until it says ready", measured.up_fresh),
        ("`authz up` again", measured.up_again),
    )
    return section(
        "Start",
        table(
            "what | starts | median s | longest s",
            [
                (what, str(len(taken)), f"{median(taken):.2f}", f"{max(taken):.2f}")
                for what, taken in rows
            ],
        ),
        "From the start of the process; `authz serve` with PostgreSQL and Redis that "
        "run already, `authz up` with all its parts. It is asked every 20 ms.",
    )
