"""The folder of `authz up`: private, for one run at a time, kept between runs."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from authz.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PRIVATE = 0o700
_OPEN_TO_OTHERS = 0o077


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make the folder ours alone until the block ends. Raises ConfigError."""
    _make_private(directory)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"another authz up runs in {directory}"
            raise ConfigError(msg) from None
        yield


def write_private(file: Path, text: str) -> None:
    """Put a file in place that only its owner may read (0600)."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    new.replace(file)


def kept_secret(file: Path) -> str:
    """Return the secret in a file; made at random when there is none."""
    if not file.exists():
        write_private(file, secrets.token_hex(32))
    return file.read_text()


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid == os.getuid() and not any(directory.iterdir()):
            directory.chmod(_PRIVATE)
            return
    except OSError as error:
        msg = f"cannot use {directory}: {error.strerror}"
        raise ConfigError(msg) from None
    if status.st_uid != os.getuid() or status.st_mode & _OPEN_TO_OTHERS:
        msg = f"{directory} must be yours alone: chmod 700 {directory}"
        raise ConfigError(msg)
