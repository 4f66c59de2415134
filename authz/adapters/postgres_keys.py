"""Keys in PostgreSQL as the service reads them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from authz.adapters.postgres import lent, translated_errors
from authz.core.allowlist import compiled
from authz.core.limits import parse_limits
from authz.core.model import Key, Scope
from authz.core.parameters import parse_parameters
from authz.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import asyncpg

    from authz.adapters.postgres import Connection, Pool

FIND_TIMEOUT_S = 0.5

# least() ignores nulls: the earlier of the two that are set.
_FIND = """
SELECT s.digest, k.id, k.name, k.owner, k.models, k.scopes, k.parameters,
       k.limits, k.disabled, k.version, k.revoked_at IS NOT NULL AS revoked,
       least(k.expires_at, s.expires_at) AS expires_at
  FROM secrets s JOIN keys k ON k.id = s.key_id
 WHERE s.digest = ANY($1)
 ORDER BY array_position($1, s.digest)
 LIMIT 1
"""

# From one pepper to the next by the index, as there are few of them among many
# secrets. Only keys that still could be used count; the others may go unfound.
_OTHER_PEPPER = """
WITH RECURSIVE stored (pepper_id) AS (
    SELECT min(pepper_id) FROM secrets
     UNION ALL
    SELECT (SELECT min(s.pepper_id) FROM secrets s WHERE s.pepper_id > stored.pepper_id)
      FROM stored WHERE stored.pepper_id IS NOT NULL
)
SELECT stored.pepper_id FROM stored
 WHERE stored.pepper_id <> ALL($1)
   AND EXISTS (SELECT FROM secrets s JOIN keys k ON k.id = s.key_id
                WHERE s.pepper_id = stored.pepper_id AND k.revoked_at IS NULL
                  AND (s.expires_at IS NULL OR s.expires_at > now()))
 LIMIT 1
"""


async def check_peppers(connection: Connection, ids: Collection[str]) -> None:
    """Raise ConfigError if keys are stored with a pepper that is none of these."""
    with translated_errors():
        other = await connection.fetchval(_OTHER_PEPPER, list(ids))
    if other is not None:
        msg = (
            f"AUTHZ_KEY_PEPPER_FILE, AUTHZ_KEY_OLD_PEPPER_FILES: keys are stored with"
            f" the pepper {other}, which is none of {', '.join(ids) or 'those'} given"
        )
        raise ConfigError(msg)


class PostgresKeys:
    """The KeyReader of the service."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def find(self, digests: Sequence[bytes]) -> Key | None:
        """Return the key that one of the digests belongs to, whatever its state."""
        with translated_errors():
            async with asyncio.timeout(FIND_TIMEOUT_S), lent(self._pool) as found:
                row = await found.fetchrow(_FIND, digests)
        return None if row is None else _key(row)


def _key(row: asyncpg.Record) -> Key:
    return Key(
        digest=row["digest"],
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
        limits=parse_limits(row["limits"]),
    )
