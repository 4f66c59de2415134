"""One sample of load: wrk against one subject, and what it measured.

A sample with a single failed request is an error: refusing is cheaper than serving.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from authz.errors import AuthzError, ConfigError
from authz.local.process import run_to_end, running

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCRIPT = Path(__file__).with_name("wrk.lua")
_MORE_S = 20.0  # what wrk may take longer than it was told to measure


class LoadFailed(AuthzError):
    """Requests failed, so that the sample measures something else."""


@dataclass(frozen=True, slots=True)
class Load:
    """How hard a subject is called: connections in use at once, and for how long."""

    connections: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Requests per second, and latencies in milliseconds."""

    rps: float
    p50_ms: float
    p99_ms: float


def find_wrk() -> str:
    """Return the program's path. Raises ConfigError where it is not installed."""
    program = shutil.which("wrk")
    if program is None:
        msg = "wrk is not on PATH: install it (Debian, Ubuntu: apt install wrk)"
        raise ConfigError(msg)
    return program


async def measure(port: int, load: Load, workplace: Path) -> Sample:
    """Put load on a port of this machine; ``workplace`` has the file ``key``.

    Raises ChildDied, or LoadFailed if any request failed.
    """
    log = workplace / "wrk.log"
    command = _command(f"http://127.0.0.1:{port}/api/chat", load)
    async with running("wrk", command, log=log, cwd=workplace) as child:
        await run_to_end(child, load.seconds + _MORE_S)
    return _sample(log.read_text().splitlines()[-1])


def _command(url: str, load: Load) -> Sequence[str]:
    return (
        find_wrk(),
        *("--threads", "1"),
        *("--connections", str(load.connections)),
        *("--duration", f"{load.seconds}s"),
        *("--script", str(_SCRIPT)),
        url,
    )


def _sample(line: str) -> Sample:
    result = json.loads(line)
    if result["failed"] or not result["requests"]:
        msg = f"{result['failed']} failures among {result['requests']} answers"
        raise LoadFailed(msg)
    return Sample(
        rps=result["requests"] / result["duration_us"] * 1e6,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
    )
