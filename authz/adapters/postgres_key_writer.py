"""Keys in PostgreSQL as the command line manages them; every change is written down."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from authz.adapters import postgres_audit
from authz.adapters.postgres import translated_errors
from authz.adapters.postgres_audit import Change
from authz.adapters.postgres_transaction import changing
from authz.core.limits import parse_limits
from authz.core.parameters import parse_parameters
from authz.errors import Refused
from authz.ports import KeyRecord, SecretRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import timedelta

    from authz.adapters.postgres import Connection
    from authz.ports import KeyChanges, NewKey, NewSecret

# One in use, one that was meant to follow it, and one that replaces that one.
MOST_LIVING_SECRETS = 3
_PAGE = 500

_RECORDS = """
SELECT k.id, k.name, k.owner, k.models, k.scopes, k.parameters, k.limits,
       k.expires_at, k.disabled, k.revoked_at, k.created_at,
       coalesce((SELECT s.prefix FROM secrets s WHERE s.key_id = k.id
                  ORDER BY s.created_at DESC LIMIT 1), '') AS prefix,
       (SELECT max(u.at) FROM secrets s JOIN last_used u USING (digest)
         WHERE s.key_id = k.id) AS last_used_at
  FROM keys k
"""
_LIST = _RECORDS + "ORDER BY k.created_at, k.id"
_BY_ID = _RECORDS + "WHERE k.id = $1"
_BY_NAME = _RECORDS + "WHERE k.name = $1 ORDER BY k.revoked_at NULLS FIRST LIMIT 2"
_SECRETS = """
SELECT s.prefix, s.created_at, s.expires_at, u.at AS last_used_at
  FROM secrets s LEFT JOIN last_used u USING (digest)
 WHERE s.key_id = $1
 ORDER BY s.created_at DESC
"""
_LOCK = "SELECT FROM keys WHERE id = $1 FOR UPDATE"

_ADD_KEY = """
INSERT INTO keys (id, name, owner, models, scopes, parameters, limits, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
_ADD_DIGEST = """
INSERT INTO secrets (key_id, digest, prefix, pepper_id) VALUES ($1, $2, $3, $4)
"""
_FIRST_TAKEN = """
SELECT min(new.index)
  FROM unnest($1::int[], $2::text[], $3::bytea[]) AS new (index, name, digest)
 WHERE EXISTS (SELECT FROM keys k WHERE k.name = new.name AND k.revoked_at IS NULL)
    OR EXISTS (SELECT FROM secrets s WHERE s.digest = new.digest)
"""
_UPDATE = """
UPDATE keys
   SET owner = coalesce($2, owner), models = coalesce($3, models),
       scopes = coalesce($4, scopes), parameters = coalesce($5, parameters),
       disabled = coalesce($6, disabled),
       expires_at = CASE WHEN $7 THEN $8 ELSE expires_at END,
       limits = $9
 WHERE id = $1
"""
_REVOKE = "UPDATE keys SET revoked_at = now() WHERE id = $1"

_REMOVE_ENDED = """
WITH ended AS (
    DELETE FROM secrets WHERE key_id = $1 AND expires_at <= now() RETURNING digest
)
DELETE FROM last_used u USING ended WHERE u.digest = ended.digest
"""
# Without a grace the end lies in the past, for replicas whose clocks are late.
_END = """
UPDATE secrets
   SET expires_at = least(expires_at, CASE $2::interval
                          WHEN interval '0' THEN created_at ELSE now() + $2 END)
 WHERE key_id = $1
"""


class PostgresKeyWriter:
    """The KeyWriter; ``actor`` is who the changes are written down for."""

    def __init__(self, connection: Connection, actor: str = "authz") -> None:
        self._connection = connection
        self._actor = actor

    async def create(self, new: NewKey) -> KeyRecord:
        """Store a key with its first secret."""
        async with changing(self._connection, new.name):
            await self._add([new], "create", f"the name {new.name!r} is taken")
            return await self.show(str(new.id))

    async def create_all(self, keys: Sequence[NewKey]) -> None:
        """Store all of these keys or none."""
        if keys:
            async with changing(self._connection, keys[0].name):
                await self._add(keys, "import", "one of the keys is there already")

    async def first_taken(self, keys: Sequence[NewKey]) -> int | None:
        """Return the index of the first whose name or secret is there already."""
        rows = [
            (index, key.name, digest)
            for index, key in enumerate(keys)
            for digest in (key.secret.digest, *key.secret.other_digests)
        ]
        if not rows:
            return None
        columns = map(list, zip(*rows, strict=True))
        with translated_errors():
            found: int | None = await self._connection.fetchval(_FIRST_TAKEN, *columns)
        return found

    async def list(self) -> AsyncIterator[KeyRecord]:
        """Go through all keys, oldest first, a page at a time."""
        with translated_errors():
            async with self._connection.transaction(readonly=True):
                async for row in self._connection.cursor(_LIST, prefetch=_PAGE):
                    yield _record(row)

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

    async def secrets(self, key_id: UUID) -> Sequence[SecretRecord]:
        """Return the secrets of a key, newest first."""
        with translated_errors():
            rows = await self._connection.fetch(_SECRETS, key_id)
        return [SecretRecord(**row) for row in rows]

    async def update(self, id_or_name: str, changes: KeyChanges) -> KeyRecord:
        """Change a living key."""
        parameters = None if changes.parameters is None else str(changes.parameters)
        expires_at = changes.expires.at if changes.expires else None
        action = {None: "update", True: "disable", False: "enable"}[changes.disabled]
        async with self._change(id_or_name, action) as key:
            _refuse_if_revoked(key)
            await self._connection.execute(
                _UPDATE,
                *(key.id, changes.owner, changes.models, changes.scopes, parameters),
                *(changes.disabled, changes.expires is not None, expires_at),
                str(key.limits.changed(changes.limits or {})),
            )
            return await self.show(str(key.id))

    async def rotate(
        self, id_or_name: str, secret: NewSecret, grace: timedelta
    ) -> KeyRecord:
        """Add a secret to a living key; the others end after the grace."""
        async with self._change(id_or_name, "rotate") as key:
            _refuse_if_revoked(key)
            await self._connection.execute(_REMOVE_ENDED, key.id)
            if grace and len(await self.secrets(key.id)) >= MOST_LIVING_SECRETS:
                msg = (
                    f"{MOST_LIVING_SECRETS} secrets of the key still live: wait until "
                    "one has ended, or end them now with --grace 0"
                )
                raise Refused(msg)
            await self._connection.execute(_END, key.id, grace)
            await self._connection.execute(_ADD_DIGEST, key.id, *_columns(secret))
            return await self.show(str(key.id))

    async def revoke(self, id_or_name: str) -> KeyRecord:
        """End a key for good; ending it again changes nothing."""
        async with self._change(id_or_name, "revoke") as key:
            if key.revoked_at is None:
                await self._connection.execute(_REVOKE, key.id)
            return await self.show(str(key.id))

    @asynccontextmanager
    async def _change(self, id_or_name: str, action: str) -> AsyncIterator[KeyRecord]:
        """Change one key that nobody else changes meanwhile, and write it down."""
        async with changing(self._connection, id_or_name):
            key = await self.show(id_or_name)
            await self._connection.execute(_LOCK, key.id)
            before = await self._state(key.id)
            yield await self.show(str(key.id))
            after = await self._state(key.id)
            if after != before:
                change = Change(action, key.id, before, after)
                await postgres_audit.note(self._connection, self._actor, [change])

    async def _state(self, key_id: UUID) -> postgres_audit.State:
        key, secrets = await self.show(str(key_id)), await self.secrets(key_id)
        return postgres_audit.state_of(key, secrets)

    async def _add(self, keys: Sequence[NewKey], action: str, taken: str) -> None:
        rows = [_key_columns(key) for key in keys]
        secrets = [(key.id, *_columns(key.secret)) for key in keys]
        changes = [
            Change(action, key.id, None, postgres_audit.state_of_new(key))
            for key in keys
        ]
        try:
            await self._connection.executemany(_ADD_KEY, rows)
            await self._connection.executemany(_ADD_DIGEST, secrets)
        except asyncpg.UniqueViolationError:
            raise Refused(taken) from None
        await postgres_audit.note(self._connection, self._actor, changes)

    async def _rows(self, id_or_name: str) -> Sequence[asyncpg.Record]:
        try:
            return await self._connection.fetch(_BY_ID, UUID(id_or_name))
        except ValueError:
            return await self._connection.fetch(_BY_NAME, id_or_name)


def _refuse_if_revoked(key: KeyRecord) -> None:
    if key.revoked_at is not None:
        msg = "the key is revoked"
        raise Refused(msg)


def _key_columns(key: NewKey) -> tuple[object, ...]:
    grant = (key.owner, key.models, key.scopes, str(key.parameters), str(key.limits))
    return (key.id, key.name, *grant, key.expires_at)


def _columns(secret: NewSecret) -> tuple[object, ...]:
    return (secret.digest, secret.prefix, secret.pepper_id)


def _record(row: asyncpg.Record) -> KeyRecord:
    columns = dict(row)
    columns["models"] = tuple(columns["models"])
    columns["scopes"] = tuple(columns["scopes"])
    columns["parameters"] = parse_parameters(columns["parameters"])
    columns["limits"] = parse_limits(columns["limits"])
    return KeyRecord(**columns)
