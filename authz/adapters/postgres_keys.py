"""Keys in PostgreSQL: read by the service, written by the command line."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from authz.adapters.postgres import translated_errors
from authz.core.allowlist import compiled
from authz.core.model import Key, Scope
from authz.core.parameters import parse_parameters
from authz.errors import Refused
from authz.ports import KeyRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from authz.adapters.postgres import Connection, Pool, PoolConnection
    from authz.ports import KeyChanges, NewKey

FIND_TIMEOUT_S = 0.5

# least() ignores nulls: the earlier of the two that are set.
_FIND = """
SELECT k.id, k.name, k.owner, k.models, k.scopes, k.parameters, k.disabled, k.version,
       k.revoked_at IS NOT NULL AS revoked,
       least(k.expires_at, s.expires_at) AS expires_at
  FROM secrets s JOIN keys k ON k.id = s.key_id
 WHERE s.digest = $1
"""

_RECORDS = """
SELECT k.id, k.name, k.owner, k.models, k.scopes, k.parameters, k.expires_at,
       k.disabled, k.revoked_at, k.created_at,
       (SELECT s.prefix FROM secrets s WHERE s.key_id = k.id
         ORDER BY s.created_at DESC LIMIT 1) AS prefix
  FROM keys k
"""
_LIST = _RECORDS + "ORDER BY k.created_at, k.id"
_BY_ID = _RECORDS + "WHERE k.id = $1"
_BY_NAME = _RECORDS + "WHERE k.name = $1 ORDER BY k.revoked_at NULLS FIRST"

_ADD_KEY = """
INSERT INTO keys (id, name, owner, models, scopes, parameters, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
_ADD_DIGEST = "INSERT INTO secrets (digest, key_id, prefix) VALUES ($1, $2, $3)"
_UPDATE = """
UPDATE keys
   SET owner = coalesce($2, owner), models = coalesce($3, models),
       scopes = coalesce($4, scopes), parameters = coalesce($5, parameters)
 WHERE id = $1 AND revoked_at IS NULL
RETURNING id
"""
_REVOKE = "UPDATE keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL"


class PostgresKeys:
    """The KeyReader of the service."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def find(self, digest: bytes) -> Key | None:
        """Return the key that a digest belongs to, whatever its state."""
        with translated_errors():
            async with asyncio.timeout(FIND_TIMEOUT_S), self._connection() as found:
                row = await found.fetchrow(_FIND, digest)
        return None if row is None else _key(row)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PoolConnection]:
        connection = await self._pool.acquire()
        try:
            yield connection
        except BaseException:
            # The driver would wait for the server to confirm that it has stopped;
            # a server that hangs does not.
            connection.terminate()
            raise
        finally:
            await self._pool.release(connection)


class PostgresKeyWriter:
    """The KeyWriter of the command line."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, new: NewKey) -> KeyRecord:
        """Store a key with its first secret."""
        key = (new.id, new.name, new.owner, new.models, new.scopes)
        more = (str(new.parameters), new.expires_at)
        with translated_errors():
            try:
                async with self._connection.transaction():
                    await self._connection.execute(_ADD_KEY, *key, *more)
                    await self._connection.execute(
                        _ADD_DIGEST, new.digest, new.id, new.prefix
                    )
            except asyncpg.UniqueViolationError:
                msg = f"the name {new.name!r} is taken"
                raise Refused(msg) from None
        return await self.show(str(new.id))

    async def list(self) -> Sequence[KeyRecord]:
        """Return all keys, oldest first."""
        with translated_errors():
            return [_record(row) for row in await self._connection.fetch(_LIST)]

    async def show(self, id_or_name: str) -> KeyRecord:
        """Return one key; a name means the living key of that name first."""
        with translated_errors():
            rows = await self._rows(id_or_name)
        if not rows:
            msg = "there is no such key"
            raise Refused(msg)
        records = [_record(row) for row in rows]
        if len(records) > 1 and records[0].revoked_at is not None:
            msg = "several revoked keys had that name; use the id"
            raise Refused(msg)
        return records[0]

    async def update(self, id_or_name: str, changes: KeyChanges) -> KeyRecord:
        """Change a living key."""
        key = await self.show(id_or_name)
        parameters = None if changes.parameters is None else str(changes.parameters)
        values = (changes.owner, changes.models, changes.scopes, parameters)
        with translated_errors():
            changed = await self._connection.fetchval(_UPDATE, key.id, *values)
        if changed is None:
            msg = "the key is revoked"
            raise Refused(msg)
        return await self.show(str(key.id))

    async def revoke(self, id_or_name: str) -> KeyRecord:
        """End a key for good; ending it again changes nothing."""
        key = await self.show(id_or_name)
        with translated_errors():
            await self._connection.execute(_REVOKE, key.id)
        return await self.show(str(key.id))

    async def _rows(self, id_or_name: str) -> Sequence[asyncpg.Record]:
        try:
            return await self._connection.fetch(_BY_ID, UUID(id_or_name))
        except ValueError:
            return await self._connection.fetch(_BY_NAME, id_or_name)


def _key(row: asyncpg.Record) -> Key:
    return Key(
        id=str(row["id"]),
        name=row["name"],
        owner=row["owner"],
        models=compiled(tuple(row["models"])),
        scopes=frozenset(map(Scope, row["scopes"])),
        parameters=parse_parameters(row["parameters"]),
        expires_at=row["expires_at"],
        disabled=row["disabled"],
        revoked=row["revoked"],
        version=row["version"],
    )


def _record(row: asyncpg.Record) -> KeyRecord:
    columns = dict(row)
    columns["models"] = tuple(columns["models"])
    columns["scopes"] = tuple(columns["scopes"])
    columns["parameters"] = parse_parameters(columns["parameters"])
    return KeyRecord(**columns)
