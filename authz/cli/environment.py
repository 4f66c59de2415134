"""Which settings a command works with: the environment's, or those of `authz up`."""

from __future__ import annotations

import asyncio
import os
import stat
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec
from urllib.parse import parse_qs, urlsplit

import click

from authz.config import load_settings
from authz.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from authz.config import Settings

P = ParamSpec("P")


def async_command(run: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Let click call a coroutine function."""

    @wraps(run)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(run(*args, **kwargs))

    return call


def data_dir_option(command: Callable[P, None]) -> Callable[P, None]:
    """Add ``--data-dir``, which every command takes."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(".authz"),
        show_default=True,
        help="Where `authz up` keeps its files.",
    )(command)


def settings_for(data_dir: Path) -> Settings:
    """Load settings that name a database; say which, if `authz up` runs it."""
    settings = load_settings()
    if settings.database_url.get_secret_value():
        return settings
    written_by_up = data_dir / "env"
    if not _is_ours(written_by_up):
        msg = f"AUTHZ_DATABASE_URL is not set, and no authz up runs in {data_dir}"
        raise ConfigError(msg)
    settings = load_settings(written_by_up)
    url = settings.database_url.get_secret_value()
    click.echo(f"database: {_without_secrets(url)} ({written_by_up})", err=True)
    return settings


def sockets_of(settings: Settings, data_dir: Path) -> Path:
    """Return where the sockets of the gateway are: those of `authz up`, if it runs."""
    linked_by_up = data_dir / "run"
    if "listen" in settings.model_fields_set or not _is_ours(linked_by_up):
        return settings.listen
    return linked_by_up


def _is_ours(file: Path) -> bool:
    try:
        status = file.stat()
    except OSError:
        return False
    open_to_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.getuid() and not open_to_others


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or parse_qs(parts.query).get("host", [""])[0]
    port = f":{parts.port}" if parts.port else ""
    return f"{host}{port}{parts.path if parts.hostname else f' {parts.path[1:]}'}"
