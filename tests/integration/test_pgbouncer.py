"""Behind PgBouncer: in session mode as without it, in transaction mode as said."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.issuing import issue
from authz.local.data_dir import write_private
from authz.local.process import private_directory, running, wait_until_ready
from authz.local.stack import free_port
from tests.failing import until
from tests.gateway import Stores, own_gateway
from tests.integration.test_tls import status
from tests.raw import http1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway import Gateway
    from tests.upstream import RawUpstream

    Behind = Gateway[RawUpstream]

# Where distributions put it, too: not on everybody's PATH.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
FAR_OFF_S = 5.0
LONG = {"AUTHZ_CACHE_TTL_S": "3600"}

pytestmark = [
    pytest.mark.pgbouncer,
    pytest.mark.skipif(PROGRAM is None, reason="there is no pgbouncer"),
]


def keeps_statements() -> bool:
    """Tell whether this version has max_prepared_statements."""
    if PROGRAM is None:
        return False
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, check=True)
    found = re.search(rb"PgBouncer (\d+)\.(\d+)", said.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= (1, 21)


@asynccontextmanager
async def gateway_behind(
    database_url: str, logs: Path, *settings: str
) -> AsyncIterator[Behind]:
    """Run a gateway behind a PgBouncer; keys are made and revoked past it."""
    async with (
        pgbouncer(database_url, *settings) as url,
        # No Redis: what memory holds is what is looked at.
        own_gateway(Stores(url, "", LONG), logs) as gateway,
    ):
        yield replace(gateway, database_url=database_url)


@asynccontextmanager
async def pgbouncer(database_url: str, *settings: str) -> AsyncIterator[str]:
    assert PROGRAM is not None
    parts, port = urlsplit(database_url), free_port()
    host = parts.hostname or parse_qs(parts.query)["host"][0]
    lines = (
        "[databases]",
        f"{parts.path[1:]} = host={host} port={parts.port or 5432}"
        f" user={parts.username} password={parts.password}",
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = any",
        *(["user = nobody"] if os.getuid() == 0 else []),
        *settings,
    )
    with private_directory("authz-pool-") as folder:
        file = folder / "pgbouncer.ini"
        write_private(file, "\n".join(lines))
        command, log = (PROGRAM, str(file)), folder / "pgbouncer.log"
        async with running("pgbouncer", command, log=log) as child:
            await wait_until_ready(child, lambda: listens(port), 10)
            yield f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def statuses_of_new_keys(gateway: Behind) -> set[int]:
    """Ask with many keys at once, so that look-ups change places in the pool."""
    raw_keys = [await gateway.new_key() for _ in range(40)]
    return set(await asyncio.gather(*(status(gateway, key) for key in raw_keys)))


async def test_in_session_mode_keys_are_remembered_and_a_revocation_is_heard(
    database_url: str, tmp_path: Path
) -> None:
    async with gateway_behind(database_url, tmp_path, "pool_mode = session") as gateway:
        raw_key = await gateway.new_key()
        await until(lambda: is_remembered(gateway, raw_key), FAR_OFF_S)
        await gateway.revoke(raw_key)
        await until(lambda: is_refused(gateway, raw_key), FAR_OFF_S)
    assert "notifications_lost" not in (tmp_path / "authz.log").read_text()


async def is_remembered(gateway: Behind, raw_key: str) -> bool:
    assert await status(gateway, raw_key) == 200
    page = await http1(gateway.metrics_port, b"GET /metrics HTTP/1.0\r\n\r\n")
    found = re.search(rb'authz_lookups_total\{source="memory"\} (\S+)', page.body)
    return found is not None and float(found[1]) > 0


async def is_refused(gateway: Behind, raw_key: str) -> bool:
    return await status(gateway, raw_key) == 401


async def test_in_transaction_mode_every_request_asks_and_the_log_says_why(
    database_url: str, tmp_path: Path
) -> None:
    # All share one session of the server: the one that has said LISTEN, too.
    mode = ("pool_mode = transaction", "default_pool_size = 1")
    async with gateway_behind(database_url, tmp_path, *mode) as gateway:
        await said(tmp_path / "authz.log", "notifications do not arrive")
        raw_key = await gateway.new_key()
        for _ in range(3):
            assert await status(gateway, raw_key) == 200
        await gateway.revoke(raw_key)
        assert await status(gateway, raw_key) == 401
        new, raw_key = issue("new", models=["*"], scopes=["inference"], expires_at=None)
        assert await status(gateway, raw_key) == 401
        async with connected(database_url) as connection:
            await PostgresKeyWriter(connection).create(new)
        assert await status(gateway, raw_key) == 200


async def said(log: Path, words: str) -> None:
    """Wait until a log has these words."""

    async def is_there() -> bool:
        return words in log.read_text()

    await until(is_there, FAR_OFF_S)


@pytest.mark.skipif(not keeps_statements(), reason="this pgbouncer is before 1.21")
async def test_in_transaction_mode_with_prepared_statements_all_keys_are_found(
    database_url: str, tmp_path: Path
) -> None:
    mode = ("pool_mode = transaction", "max_prepared_statements = 100")
    async with gateway_behind(database_url, tmp_path, *mode) as gateway:
        assert await statuses_of_new_keys(gateway) == {200}


async def test_without_prepared_statements_no_good_key_is_called_wrong(
    database_url: str, tmp_path: Path
) -> None:
    none = ["max_prepared_statements = 0"] if keeps_statements() else []
    mode = ("pool_mode = transaction", *none)
    async with gateway_behind(database_url, tmp_path, *mode) as gateway:
        assert await statuses_of_new_keys(gateway) <= {200, 503}
