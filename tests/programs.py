"""Running our own commands as users do: as programs, in a clean environment."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left behind."""

    status: int
    out: str
    err: str


async def authz(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> Ended:
    """Run `authz` with these words until it ends."""
    process = await start(*words, cwd=cwd, env=env)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def start(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start `authz` with these words."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "authz", *words),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
