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
from authz.local.postgres_site import installation
from authz.local.redis import redis_binary
from benchmarks.peers import litellm
from benchmarks.wrk import find_wrk

if TYPE_CHECKING:
    from collections.abc import Sequence

_CPUS = Path("/proc/cpuinfo")
_HERE = Path(__file__).parent
_PACKAGES = ("grpcio", "protobuf", "uvloop", "fastapi", "httpx", "uvicorn")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Date, machine, versions; the load average of a minute at both ends of the run.

    ``commit`` is what git says of this folder, if there is a git.
    """

    date: str
    cores: int
    cpu: str
    load_before: float
    load_after: float
    versions: dict[str, str]
    commit: str = ""

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
            f"Commit: {self.commit or 'unknown'}",
        )


def look_around() -> Surroundings:
    """Describe where we are. Raises ConfigError where there is no Envoy."""
    load = os.getloadavg()[0]
    versions = {
        "Python": platform.python_version(),
        "Envoy": _version_of(envoy_binary(), before="/"),
        "PostgreSQL": _version_of(installation() / "bin" / "postgres"),
        "Redis": _version_of(redis_binary()),
        "wrk": _version_of(find_wrk(), "-v"),
    }
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
        commit=_said("git", "-C", str(_HERE), "describe", "--always", "--dirty"),
    )


def surroundings() -> Sequence[str]:
    """Describe where we are, one line each."""
    return look_around().lines


def _version_of(
    program: Path | str | None, option: str = "--version", before: str = ""
) -> str:
    """Return the first number with points, behind ``before``, that a program says."""
    said = _said(str(program), option) if program else ""
    found = re.search(rf"{before}(\d+(?:\.\d+)+)", said)
    return found[1] if found else "unknown"


def _said(*command: str) -> str:
    """Return what a program says; nothing where it is not there."""
    try:
        # wrk ends with 1 after it has said its version.
        done = subprocess.run(  # noqa: S603 - programs that the benchmark runs anyway
            command, capture_output=True, check=False, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in _CPUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
