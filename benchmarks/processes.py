"""What running programs take of the machine: the kernel says it."""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB$", re.MULTILINE)
PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_TIMES = slice(11, 15)  # behind the name: its own, and those of ended children
_SAMPLE_S = 1.0


def memory_kb(pid: int, what: re.Pattern[str] = RESIDENT) -> int:
    """Return the memory of a process."""
    found = what.search(_proc(pid, "status"))
    return int(found[1]) if found else 0


def cpu_seconds(pid: int) -> float:
    """Return what all threads of a process have run so far."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@dataclass
class Watched:
    """What programs took, by name: shares of a core, and samples of memory in kB."""

    pids: Mapping[str, int]
    cpu: dict[str, float] = field(default_factory=dict)
    memory: dict[str, list[int]] = field(default_factory=dict)

    def warmed_up(self) -> None:
        """Forget the samples: from now on memory has to stay as it is."""
        self.memory = {name: [memory_kb(pid)] for name, pid in self.pids.items()}

    async def keep_sampling(self) -> None:
        """Take samples of memory, until cancelled."""
        while True:
            await asyncio.sleep(_SAMPLE_S)
            for name, samples in self.memory.items():
                samples.append(memory_kb(self.pids[name]))


@asynccontextmanager
async def watching(pids: Mapping[str, int]) -> AsyncIterator[Watched]:
    """Watch programs for the length of the block."""
    watched = Watched(pids)
    watched.warmed_up()
    before, began = cpu_of_families(pids), perf_counter()
    sampling = asyncio.create_task(watched.keep_sampling())
    try:
        yield watched
    finally:
        sampling.cancel()
        seconds, after = perf_counter() - began, cpu_of_families(pids)
        watched.cpu = {name: (after[name] - before[name]) / seconds for name in pids}


def cpu_of_families(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the seconds that programs have run so far, with what they started."""
    return {name: sum(map(_cpu_ever, _family(pid))) for name, pid in pids.items()}


def memory_of_families(pids: Mapping[str, int]) -> dict[str, int]:
    """Return the resident kB of programs with what they started."""
    return {name: sum(map(memory_kb, _family(pid))) for name, pid in pids.items()}


def _cpu_ever(pid: int) -> float:
    times = _proc(pid, "stat").rpartition(")")[2].split()[_TIMES]
    return sum(map(int, times)) / _TICKS_PER_S


def _family(pid: int) -> Iterator[int]:
    """Return a process and what descends from it."""
    yield pid
    for child in _proc(pid, f"task/{pid}/children").split():
        yield from _family(int(child))


def _proc(pid: int, name: str) -> str:
    """Return what the kernel says; nothing of what has ended: its parent has its time.

    Servers of PostgreSQL come and go.
    """
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
