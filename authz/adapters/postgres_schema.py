"""The schema: plain SQL files, forward only, one transaction each.

Every file names the oldest version of this package that can read what it leaves
behind (`-- oldest-reader: N`, where a package's version is the number of its last
file), so that old and new replicas may overlap during an upgrade.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import asyncpg

from authz.adapters.postgres import translated_errors
from authz.errors import Refused, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from authz.adapters.postgres import Connection

_FILE = re.compile(r"(?P<version>\d{4})_[a-z0-9_]+\.sql")
_OLDEST_READER = re.compile(r"^-- oldest-reader: (\d+)$", re.MULTILINE)

# Any number, as long as every runner takes the same: CRC-32 of "authz migrate".
_LOCK = "SELECT pg_advisory_xact_lock(1625867674)"
_WAIT_FOR_RUNNER = "SET LOCAL lock_timeout = '60s'"
# Who waits for a table keeps everybody behind him from it, look-ups too. A second
# longer than autovacuum takes to give way (deadlock_timeout).
_WAIT_FOR_TABLES = "SET LOCAL lock_timeout = '2s'"
_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version       integer     PRIMARY KEY,
    checksum      text        NOT NULL,
    oldest_reader integer     NOT NULL,
    applied_at    timestamptz NOT NULL DEFAULT now()
)
"""
_ADD_MONTHS = "SELECT usage_add_months(24)"
_APPLIED = "SELECT version, checksum, oldest_reader FROM schema_migrations"
_RECORD = """
INSERT INTO schema_migrations (version, checksum, oldest_reader) VALUES ($1, $2, $3)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of authz/migrations."""

    version: int
    sql: str
    oldest_reader: int

    @property
    def checksum(self) -> str:
        """SHA-256 of the text: an applied file must never change."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@cache
def shipped() -> Sequence[Migration]:
    """Return this package's migrations, in order."""
    files = resources.files("authz.migrations").iterdir()
    named = ((_FILE.fullmatch(file.name), file) for file in files)
    found = [
        _migration(name["version"], file.read_text()) for name, file in named if name
    ]
    return sorted(found, key=lambda migration: migration.version)


async def migrate(connection: Connection) -> Sequence[int]:
    """Apply what is missing; return the versions applied.

    Raises SchemaError, and Refused where others keep the tables to themselves.
    """
    return [m.version for m in shipped() if await _apply(connection, m)]


async def add_months(connection: Connection) -> None:
    """Have a table for each of the next months of usage. Raises Refused."""
    with translated_errors(), _locks_refused("no months of usage were added"):
        async with connection.transaction():
            await connection.execute(_WAIT_FOR_RUNNER)
            await connection.execute(_LOCK)
            await connection.execute(_WAIT_FOR_TABLES)
            await connection.execute(_ADD_MONTHS)


async def check_schema(connection: Connection) -> None:
    """Raise SchemaError unless this package can work on the schema as it is."""
    with translated_errors():
        try:
            rows = await connection.fetch(_APPLIED)
        except asyncpg.UndefinedTableError:
            rows = []
    ours = shipped()[-1].version
    theirs = max((row["version"] for row in rows), default=0)
    oldest_reader = max((row["oldest_reader"] for row in rows), default=0)
    if theirs < ours:
        msg = f"the schema is at {theirs}, this version needs {ours}: run authz migrate"
        raise SchemaError(msg)
    if ours < oldest_reader:
        msg = (
            f"the schema is at {theirs} and needs a version that knows "
            f"{oldest_reader}; this one knows {ours}: upgrade authz"
        )
        raise SchemaError(msg)


async def _apply(connection: Connection, migration: Migration) -> bool:
    undone = f"migration {migration.version:04} was not applied"
    with translated_errors(), _locks_refused(undone):
        async with connection.transaction():
            await connection.execute(_WAIT_FOR_RUNNER)
            await connection.execute(_LOCK)
            await connection.execute(_WAIT_FOR_TABLES)
            await connection.execute(_CREATE_TABLE)
            applied = await _applied_checksums(connection)
            if migration.version in applied:
                _refuse_change(migration, applied[migration.version])
                return False
            await connection.execute(migration.sql)
            await connection.execute(
                _RECORD,
                migration.version,
                migration.checksum,
                migration.oldest_reader,
            )
            return True


@contextmanager
def _locks_refused(undone: str) -> Iterator[None]:
    try:
        yield
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        msg = (
            f"{undone}: something else (a backup, a long transaction, another authz "
            "migrate) holds the locks; try again later"
        )
        raise Refused(msg) from None


async def _applied_checksums(connection: Connection) -> Mapping[int, str]:
    rows = await connection.fetch(_APPLIED)
    return {row["version"]: row["checksum"] for row in rows}


def _refuse_change(migration: Migration, checksum: str) -> None:
    if migration.checksum != checksum:
        msg = f"migration {migration.version:04} is not the one that was applied"
        raise SchemaError(msg)


def _migration(version: str, sql: str) -> Migration:
    oldest_reader = _OLDEST_READER.search(sql)
    if oldest_reader is None:
        msg = f"migration {version} does not name its oldest reader"
        raise SchemaError(msg)
    return Migration(int(version), sql, int(oldest_reader[1]))
