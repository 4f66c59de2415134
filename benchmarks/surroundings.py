"""Where a run took place, so that nobody compares it with one elsewhere."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_CPUS = Path("/proc/cpuinfo")


def surroundings(envoy_version: str = "") -> Sequence[str]:
    """Describe date, machine and versions, one line each; Envoy where it ran."""
    envoy = f"Envoy {envoy_version}, " if envoy_version else ""
    load = os.getloadavg()[0]
    return (
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"Machine: {len(os.sched_getaffinity(0))} cores, {_cpu_model()}; load average "
        f"at the end, the benchmark's own included: {load:.1f}",
        f"Versions: Python {platform.python_version()}, {envoy}"
        f"grpcio {version('grpcio')}, protobuf {version('protobuf')}",
    )


def _cpu_model() -> str:
    for line in _CPUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
