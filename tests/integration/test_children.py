"""Children of ours: watched, reported, stopped, and never left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from authz.errors import ChildDied
from authz.local.process import Manner, running, wait_until_ready

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 10.0

SUPERVISOR = """
import asyncio, pathlib, sys
from authz.local.process import running

async def supervise():
    argv = ["sh", "-c", "echo $$; exec sleep 60"]
    async with running("part", argv, log=pathlib.Path(sys.argv[1])) as child:
        await child.died()

asyncio.run(supervise())
"""


async def test_a_child_that_dies_is_reported_with_its_last_lines(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier run\n")
    script = "seq 100; echo last words >&2; exit 3"
    async with running("part", ["sh", "-c", script], log=log) as child:
        lines = str(await child.died()).splitlines()
    assert lines[0] == "part ended with status 3"
    assert lines[1:] == [*map(str, range(87, 101)), "last words"]


async def test_a_program_that_is_missing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ChildDied, match=r"^part "):
        async with running("part", ["./missing"], log=tmp_path / "log") as child:
            raise await child.died()


async def test_waiting_for_a_silent_child_has_an_end(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    async with running("part", ["sleep", "60"], log=tmp_path / "log") as child:
        with pytest.raises(ChildDied, match=r"^part did not answer within 0\.1 s$"):
            await wait_until_ready(child, never, 0.1)


async def test_a_child_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo ready; while :; do read _; done </dev/zero"
    log = tmp_path / "log"
    manner = Manner(grace_s=0.1)
    async with running("part", ["sh", "-c", script], log=log, manner=manner) as child:

        async def ready() -> bool:
            return "ready" in log.read_text()

        await wait_until_ready(child, ready, DEADLINE_S)
    assert child.process.returncode == -signal.SIGKILL


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (util-linux)")
async def test_no_child_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = [sys.executable, "-c", SUPERVISOR, str(log)]
    async with running("supervisor", argv, log=tmp_path / "outer") as supervisor:

        async def ready() -> bool:
            return log.exists() and log.read_text().endswith("\n")

        await wait_until_ready(supervisor, ready, DEADLINE_S)
        child = os.pidfd_open(int(log.read_text()))
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(child, gone.set)
        supervisor.process.kill()
        await asyncio.wait_for(gone.wait(), DEADLINE_S)
        asyncio.get_running_loop().remove_reader(child)
        os.close(child)
