"""A disk so small that a test can fill it."""

from __future__ import annotations

import errno
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from authz.local.process import private_directory

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

_BLOCK = bytes(4096)


@contextmanager
def small_disk(mib: int, owner: os.stat_result) -> Iterator[Path]:
    """Mount an empty disk for the length of the block; only root may."""
    with private_directory("authz-disk-") as place:
        options = f"size={mib}m,mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
        _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place))
        try:
            yield place
        finally:
            # Lazily: also if a server that should have ended still holds a file.
            _run("umount", "--lazy", str(place))


def fill(disk: Path) -> Path:
    """Take all that is left and return the file to remove."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(_BLOCK):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filler


def move(folder: Path, disk: Path) -> None:
    """Put a folder's files onto the disk, their owner kept; a link takes its place."""
    _run("cp", "--archive", f"{folder}/.", str(disk))
    shutil.rmtree(folder)
    folder.symlink_to(disk)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
