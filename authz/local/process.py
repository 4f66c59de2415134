"""Run other programs as children that are watched, stopped in order and reaped.

No child outlives the block that started it, and no secret goes into an argv.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from asyncio.subprocess import DEVNULL, STDOUT
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from authz.errors import ChildDied

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterator,
        Mapping,
        Sequence,
    )

_LAST_LINES = 15
_LAST_BYTES = 8192
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Manner:
    """How a child is started and stopped; ``privileges`` are options of setpriv."""

    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0
    privileges: tuple[str, ...] = ()
    pass_fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Child:
    """A running program; ``log_start`` is where its own output begins in ``log``."""

    name: str
    log: Path
    log_start: int
    process: Process

    @property
    def ended(self) -> bool:
        """Whether the program has ended."""
        return self.process.returncode is not None

    async def died(self) -> ChildDied:
        """Wait for the program's end and return the error that reports it."""
        return self.report(_fate(await self.process.wait()))

    def report(self, what: str) -> ChildDied:
        """Return an error of one line and the last lines that the program wrote."""
        return ChildDied("\n".join([f"{self.name} {what}", *self._last_lines()]))

    def _last_lines(self) -> list[str]:
        with self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self.log_start, end - _LAST_BYTES))
            text = log.read(_LAST_BYTES).decode(errors="replace")
        return text.splitlines()[-_LAST_LINES:]


@asynccontextmanager
async def running(
    name: str,
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    manner: Manner = Manner(),
) -> AsyncIterator[Child]:
    """Run a program for the length of the block, its output appended to ``log``.

    It has a session of its own, so that Ctrl-C in the terminal reaches us alone.
    Raises ChildDied if it cannot be started.
    """
    argv = (*_setpriv(manner), *argv)
    with _appending(log) as output:
        log_start = os.fstat(output).st_size
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                env=env,
                cwd=cwd,
                pass_fds=manner.pass_fds,
                start_new_session=True,
            )
        except OSError as error:
            msg = f"{name} cannot be started: {error.strerror}"
            raise ChildDied(msg) from error
    try:
        yield Child(name, log, log_start, process)
    finally:
        await _stop(process, manner)


async def run_to_end(child: Child, deadline_s: float) -> None:
    """Wait until a program has done its work. Raises ChildDied if it fails."""
    try:
        status = await asyncio.wait_for(child.process.wait(), deadline_s)
    except TimeoutError:
        what = f"did not end within {deadline_s:g} s"
        raise child.report(what) from None
    if status != 0:
        raise child.report(_fate(status))


async def wait_until_ready(
    child: Child, probe: Callable[[], Awaitable[bool]], deadline_s: float
) -> None:
    """Ask ``probe`` until it says yes. Raises ChildDied on an end or the deadline."""
    try:
        async with asyncio.timeout(deadline_s):
            while not await probe():
                if child.ended:
                    raise await child.died()
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        what = f"did not answer within {deadline_s:g} s"
        raise child.report(what) from None


@contextmanager
def private_directory(prefix: str) -> Iterator[Path]:
    """Make a directory (0700) for the length of the block.

    Its path is short: that of a unix socket has at most 107 bytes.
    """
    path = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _setpriv(manner: Manner) -> tuple[str, ...]:
    program = shutil.which("setpriv")
    if program is None:
        return ()
    # The kernel forgets the signal when the user changes, so setpriv does both.
    return (program, *manner.privileges, f"--pdeathsig={manner.stop_signal.name}", "--")


@contextmanager
def _appending(log: Path) -> Iterator[int]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    output = os.open(log, flags, 0o600)
    try:
        yield output
    finally:
        os.close(output)


async def _stop(process: Process, manner: Manner) -> None:
    """Ask, wait, insist; reap also when we are cancelled meanwhile."""
    if process.returncode is not None:
        return
    try:
        with suppress(ProcessLookupError):
            process.send_signal(manner.stop_signal)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), manner.grace_s)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _fate(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
