"""One sample of load: a client against one subject, and what it measured.

A sample with a single failed request is an error: refusing is cheaper than serving.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from authz.errors import AuthzError, ChildDied, ConfigError
from authz.local.process import run_to_end, running

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SCRIPT = Path(__file__).with_name("wrk.lua")
_MORE_S = 20.0  # what a client may take longer than it was told to measure
_UNDER_WAY = 200  # more keys than a client has asked with and had no answer to
# More than any subject answers here that takes a new key for each request.
COLD_KEYS_A_SECOND = 2500


class LoadFailed(AuthzError):
    """Requests failed, so that the sample measures something else."""


@dataclass(frozen=True, slots=True)
class Load:
    """How hard a subject is called, and for how long: by wrk on so many connections,
    each asking again when it is answered; or, where ``per_s`` is set, evenly in time.
    """

    connections: int
    seconds: int
    per_s: int = 0

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.per_s}/s" if self.per_s else str(self.connections)


@dataclass(slots=True)
class Target:
    """Where a load goes; ``folder`` has the files ``keys``, one a line, and ``body``.

    A file of one key is for all requests; of more, each request takes the next.
    """

    port: int
    folder: Path
    path: str
    next_key: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """How many requests, how many a second, and latencies in milliseconds."""

    requests: int
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


async def measure(target: Target, load: Load) -> Sample:
    """Put load on a target. Raises LoadFailed if any request, or the client, failed."""
    log = target.folder / "client.log"
    command = _steady(target, load) if load.per_s else _wrk(target, load)
    # Of a client that fails nobody knows how many it has asked with.
    asked = load.seconds * COLD_KEYS_A_SECOND
    try:
        async with running("client", command, log=log, cwd=target.folder) as child:
            await run_to_end(child, load.seconds + _MORE_S)
        result = json.loads(log.read_text().splitlines()[-1])
        asked = result["requests"] + _UNDER_WAY
    except ChildDied as error:
        raise LoadFailed(str(error)) from error
    finally:
        target.next_key += asked
    return _sample(result)


def _wrk(target: Target, load: Load) -> Sequence[str]:
    return (
        find_wrk(),
        *("--threads", "1"),
        *("--connections", str(load.connections)),
        *("--duration", f"{load.seconds}s"),
        *("--timeout", f"{_MORE_S:.0f}s"),
        *("--script", str(_SCRIPT)),
        f"http://127.0.0.1:{target.port}{target.path}",
        *("--", str(target.next_key)),
    )


def _steady(target: Target, load: Load) -> Sequence[str]:
    numbers = (target.port, target.next_key, load.connections, load.per_s, load.seconds)
    module = (sys.executable, "-m", "benchmarks.steady")
    return (*module, target.path, *map(str, numbers))


def _sample(result: Mapping[str, float]) -> Sample:
    if result["failed"] or not result["requests"]:
        msg = f"{result['failed']} failures among {result['requests']} answers"
        raise LoadFailed(msg)
    return Sample(
        requests=int(result["requests"]),
        rps=result["requests"] / result["duration_us"] * 1e6,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
    )
