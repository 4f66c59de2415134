"""Where a run took place, so that nobody compares it with one elsewhere."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from authz.local.envoy import envoy_binary
from benchmarks.peers import litellm

if TYPE_CHECKING:
    from collections.abc import Sequence

_CPUS = Path("/proc/cpuinfo")
_PACKAGES = ("grpcio", "protobuf", "uvloop", "fastapi", "httpx", "uvicorn")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Date, machine, versions; the load average of a minute at both ends of the run."""

    date: str
    cores: int
    cpu: str
    load_before: float
    load_after: float
    versions: dict[str, str]

    @property
    def machine(self) -> str:
        """The machine in a few words."""
        return f"{self.cores} cores, {self.cpu}"

    @property
    def versions_line(self) -> str:
        """The versions in a line."""
        return ", ".join(f"{name} {number}" for name, number in self.versions.items())

    def ended(self) -> Surroundings:
        """Note the load now."""
        return replace(self, load_after=os.getloadavg()[0])

    @property
    def lines(self) -> Sequence[str]:
        """One line each."""
        return (
            f"Date: {self.date}",
            f"Machine: {self.machine}; load average before the run "
            f"{self.load_before:.1f}, at its end, the benchmark's own included, "
            f"{self.load_after:.1f}",
            f"Versions: {self.versions_line}",
        )


def look_around() -> Surroundings:
    """Describe where we are. Raises ConfigError where there is no Envoy."""
    load = os.getloadavg()[0]
    versions = {"Python": platform.python_version(), "Envoy": _envoy_version()}
    versions |= {name: version(name) for name in _PACKAGES}
    if found := litellm.version():
        versions["LiteLLM"] = found
    return Surroundings(
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        cores=len(os.sched_getaffinity(0)),
        cpu=_cpu_model(),
        load_before=load,
        load_after=load,
        versions=versions,
    )


def surroundings() -> Sequence[str]:
    """Describe where we are, one line each."""
    return look_around().lines


def _envoy_version() -> str:
    said = subprocess.run(  # noqa: S603 - our own Envoy
        [envoy_binary(), "--version"], capture_output=True, check=True, text=True
    ).stdout
    found = re.search(r"/(\d+\.\d+\.\d+)", said)
    return found[1] if found else said.strip()


def _cpu_model() -> str:
    for line in _CPUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
