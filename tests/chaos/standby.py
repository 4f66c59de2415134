"""A standby that streams from an embedded PostgreSQL and can take its place."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg

from authz.adapters.postgres import connected
from authz.errors import StoreUnavailable
from authz.local.postgres_site import opened, opened_site
from authz.local.process import Manner, run_to_end, running, wait_until_ready
from tests.failing import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from authz.local.postgres_site import Site
    from authz.local.process import Child

_MAY_REPLICATE = "local replication all scram-sha-256\n"
_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Standby:
    """A running standby; ``url`` is the application's, as on the primary."""

    url: str
    superuser: str

    async def catch_up(self, primary: str) -> None:
        """Wait until all that the primary has is here, too."""
        async with connected(primary) as there:
            position = await there.fetchval("SELECT pg_current_wal_lsn()")

        async def has_all() -> bool:
            async with connected(self.superuser) as here:
                return bool(
                    await here.fetchval(
                        "SELECT pg_last_wal_replay_lsn() >= $1", position
                    )
                )

        await until(has_all, _WITHIN_S)

    async def promote(self) -> None:
        """Become the primary."""
        async with connected(self.superuser) as connection:
            assert await connection.fetchval("SELECT pg_promote()")


def superuser_url(url: str, directory: Path) -> str:
    """Return the URL of the superuser of the embedded server in a directory."""
    password = (directory / "superuser.password").read_text()
    user = f"postgres:{password}@"
    return urlunsplit(urlsplit(url)._replace(netloc=user, path="/postgres"))


def either(one: str, other: str) -> str:
    """Return the URL of whichever of two servers may be written to."""
    folders = ",".join(_folder(url) for url in (one, other))
    query = f"host={folders}&port=5432,5432&target_session_attrs=read-write"
    return urlunsplit(urlsplit(one)._replace(query=query))


@asynccontextmanager
async def running_standby(
    primary: str, primary_directory: Path, directory: Path
) -> AsyncIterator[Standby]:
    """Copy a running primary and follow it until the block ends."""
    superuser = superuser_url(primary, primary_directory)
    with (primary_directory / "data" / "pg_hba.conf").open("a") as rules:
        rules.write(_MAY_REPLICATE)
    async with connected(superuser) as connection:
        await connection.execute("SELECT pg_reload_conf()")
    async with opened_site(directory) as site:
        await _copy(site, superuser)
        with opened(site.data) as data:
            async with _running(site, data) as child:
                standby = Standby(_at(primary, site), _at(superuser, site))
                await wait_until_ready(child, lambda: _answers(standby), _WITHIN_S)
                yield standby


async def _copy(site: Site, superuser: str) -> None:
    command = (
        str(site.programs / "pg_basebackup"),
        *("-D", str(site.data), "--write-recovery-conf", "--checkpoint=fast"),
        *("--host", _folder(superuser), "--username=postgres", "--no-sync"),
    )
    password = urlsplit(superuser).password or ""
    environment = {"PATH": os.defpath, "LC_ALL": "C", "PGPASSWORD": password}
    log = site.directory / "pg_basebackup.log"
    async with running("pg_basebackup", command, log=log, env=environment) as child:
        await run_to_end(child, _WITHIN_S)
    site.give(site.data)


def _running(site: Site, data: int) -> AbstractAsyncContextManager[Child]:
    settings = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(site.workplace),
    }
    account = site.account
    return running(
        "standby",
        (
            str(site.programs / "postgres"),
            *("-D", f"/proc/self/fd/{data}"),
            *(f"--{name}={value}" for name, value in settings.items()),
        ),
        log=site.directory / "postgres.log",
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        cwd=site.workplace,
        manner=Manner(
            stop_signal=signal.SIGINT,
            privileges=(
                (f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups")
                if account
                else ()
            ),
            pass_fds=(data, site.lock),
        ),
    )


async def _answers(standby: Standby) -> bool:
    try:
        async with connected(standby.superuser):
            return True
    except (StoreUnavailable, asyncpg.PostgresError):
        return False


def _at(url: str, site: Site) -> str:
    query = f"host={site.workplace}&port=5432"
    return urlunsplit(urlsplit(url)._replace(query=query))


def _folder(url: str) -> str:
    (folder,) = parse_qs(urlsplit(url).query)["host"]
    return folder
