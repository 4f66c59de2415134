"""A PostgreSQL of our own, for `authz up` and for the tests.

It listens on a private unix socket alone, every role needs its password, and no
password is ever in an argv, an environment or the log.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import asyncpg

from authz.errors import ConfigError
from authz.local.data_dir import kept_secret, write_private
from authz.local.postgres_site import opened, opened_site
from authz.local.process import Manner, run_to_end, running, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from authz.local.postgres_site import Account, Site
    from authz.local.process import Child

_SUPERUSER = "postgres"  # the role and its database
_APPLICATION = "authz"  # the role and its database
_HBA = "local all all scram-sha-256\n"
_INITDB_WITHIN_S = 60.0
_READY_WITHIN_S = 60.0  # after a crash it recovers first
_CONNECT_S = 5.0
_GRACE_S = 30.0

# What a connection meets while the server is on its way.
_NOT_YET = (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError)


@asynccontextmanager
async def embedded_postgres(
    directory: Path,
    *,
    durable: bool = True,
    started: Callable[[Child], object] = lambda _child: None,
) -> AsyncIterator[str]:
    """Run PostgreSQL on ``directory`` for the length of the block; yield its URL.

    The URL's role owns its database and is no superuser; its password is new in
    every run. ``started`` gets the child, to watch it. Without ``durable`` a crash
    may cost the data. Raises ConfigError, or ChildDied if it does not start.
    """
    async with AsyncExitStack() as stack:
        with _as_config_error(directory):
            site = await stack.enter_async_context(opened_site(directory))
            superuser = _url(site, _SUPERUSER, _superuser_password(site))
            if not site.data.exists():
                await _initialise(site, durable=durable)
            data = stack.enter_context(opened(site.data))
        child = await stack.enter_async_context(
            _running(site, data, "postgres", _server_options(site, durable=durable))
        )
        started(child)
        await wait_until_ready(child, lambda: _answers(superuser), _READY_WITHIN_S)
        password = secrets.token_hex(32)
        await _provide(superuser, password)
        yield _url(site, _APPLICATION, password)


@contextmanager
def _as_config_error(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"PostgreSQL cannot use {directory}: {error.strerror}"
        raise ConfigError(msg) from error


def _superuser_password(site: Site) -> str:
    return kept_secret(site.directory / "superuser.password")


def _url(site: Site, role: str, password: str) -> str:
    # The port is part of the socket's name; unsaid, clients take it from PGPORT.
    return f"postgresql://{role}:{password}@/{role}?host={site.workplace}&port=5432"


def _running(
    site: Site, data: int, program: str, options: Sequence[str]
) -> AbstractAsyncContextManager[Child]:
    """Run a program on the data directory that the descriptor ``data`` is."""
    return running(
        program,
        (str(site.programs / program), "-D", f"/proc/self/fd/{data}", *options),
        log=site.directory / "postgres.log",
        # None of our own variables: PG* would change how it starts.
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        cwd=site.workplace,
        manner=Manner(
            stop_signal=signal.SIGINT,  # a fast shutdown
            grace_s=_GRACE_S,
            privileges=_privileges(site.account),
            # The lock goes along: it holds until the last process has ended.
            pass_fds=(data, site.lock),
        ),
    )


def _privileges(account: Account | None) -> tuple[str, ...]:
    if account is None:
        return ()
    return (f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups")


async def _initialise(site: Site, *, durable: bool) -> None:
    """Make the data directory; it gets its name when it is complete."""
    new = site.data.with_suffix(".new")
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    site.give(new)
    password_file = site.workplace / "password"
    write_private(password_file, _superuser_password(site))
    site.give(password_file)
    options = (
        f"--username={_SUPERUSER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        *(() if durable else ("--no-sync",)),
    )
    with opened(new) as data:
        async with _running(site, data, "initdb", options) as child:
            await run_to_end(child, _INITDB_WITHIN_S)
    password_file.unlink()
    (new / "pg_hba.conf").write_text(_HBA)
    new.rename(site.data)


def _server_options(site: Site, *, durable: bool) -> Sequence[str]:
    settings = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(site.workplace),
        "unix_socket_permissions": "0700",
        # Statements would be logged with the secrets in them.
        "log_min_error_statement": "panic",
    }
    if not durable:
        settings |= dict.fromkeys(
            ("fsync", "synchronous_commit", "full_page_writes"), "off"
        )
    return [f"--{name}={value}" for name, value in settings.items()]


async def _answers(url: str) -> bool:
    try:
        async with _connected(url):
            return True
    except _NOT_YET:
        return False


async def _provide(superuser: str, password: str) -> None:
    """Make sure of the application's role, with this password, and its database."""
    async with _connected(superuser) as connection:
        roles = await connection.fetch(
            "SELECT 1 FROM pg_roles WHERE rolname = $1", _APPLICATION
        )
        if not roles:
            # CREATEDB for tests, each of which has a copy of a template database.
            await connection.execute(f"CREATE ROLE {_APPLICATION} LOGIN CREATEDB")
        await connection.execute(f"ALTER ROLE {_APPLICATION} PASSWORD '{password}'")
        databases = await connection.fetch(
            "SELECT 1 FROM pg_database WHERE datname = $1", _APPLICATION
        )
        if not databases:
            await connection.execute(
                f"CREATE DATABASE {_APPLICATION} OWNER {_APPLICATION}"
            )


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    try:
        connection = await asyncpg.connect(url, timeout=_CONNECT_S)
    except asyncpg.InvalidPasswordError:
        msg = "the file superuser.password does not fit the embedded PostgreSQL"
        raise ConfigError(msg) from None
    try:
        yield connection
    finally:
        await connection.close(timeout=_CONNECT_S)
