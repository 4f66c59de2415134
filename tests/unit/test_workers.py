"""How a process of ours ends."""

from __future__ import annotations

import subprocess
import sys

_ENDS_BY_ITSELF = """
import asyncio, os, signal, sys
from authz.workers import stop_on_signals

async def run():
    with stop_on_signals():
        pass
    os.kill(os.getpid(), signal.SIGTERM)

asyncio.run(run())
os.kill(os.getpid(), signal.SIGTERM)
sys.exit("its last line")
"""


def test_a_process_that_ends_by_itself_is_not_cut_short() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _ENDS_BY_ITSELF],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "its last line\n")
