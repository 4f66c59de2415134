"""Running our own commands as users do: as programs, in a clean environment."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests import secrecy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left behind."""

    status: int
    out: str
    err: str


async def authz(
    *words: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    given: bytes | None = None,
) -> Ended:
    """Run `authz` with these words, and this on standard input, until it ends."""
    process = await start(*words, cwd=cwd, env=env, given=given is not None)
    out, err = await asyncio.wait_for(process.communicate(given), 60)
    assert process.returncode is not None
    secrecy.errors_printed.append(err)
    return Ended(process.returncode, out.decode(), err.decode())


async def start(
    *words: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    given: bool = False,
) -> asyncio.subprocess.Process:
    """Start `authz` with these words; ``given`` opens its standard input."""
    secrecy.remember(env or {})
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "authz", *words),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=asyncio.subprocess.PIPE if given else None,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
