"""Very many keys in PostgreSQL at once, some of which somebody holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from authz.adapters.postgres import Connection

_HELD = "CREATE TEMP TABLE held (n int PRIMARY KEY, digest bytea)"
_ADD_KEYS = """
INSERT INTO keys (id, name, owner, models, scopes)
SELECT md5(n::text)::uuid, 'key-' || n, 'team-' || n % 1000,
       ARRAY['registry.ollama.ai/library/llama3.*:*',
             'registry.ollama.ai/team-' || n % 1000 || '/*:*'],
       ARRAY['inference', 'read']
  FROM generate_series($1::int, $2::int) AS n
"""
_ADD_SECRETS = """
INSERT INTO secrets (key_id, digest, prefix)
SELECT md5(n::text)::uuid, coalesce(digest, sha256(n::text::bytea)), 'nz_' || n
  FROM generate_series($1::int, $2::int) AS n LEFT JOIN held USING (n)
"""
_TRIGGERS = "ALTER TABLE secrets {} TRIGGER USER"


async def prepare(connection: Connection, held: Sequence[tuple[int, bytes]]) -> None:
    """Tell the digests of those keys, by number, that somebody holds."""
    await connection.execute(_HELD)
    await connection.copy_records_to_table("held", records=held)


async def add(connection: Connection, first: int, last: int) -> None:
    """Add the keys of these numbers."""
    # Nobody has asked for them, and notifications would be most of the time.
    await connection.execute(_TRIGGERS.format("DISABLE"))
    await connection.execute(_ADD_KEYS, first, last)
    await connection.execute(_ADD_SECRETS, first, last)
    await connection.execute(_TRIGGERS.format("ENABLE"))
    # Now, not by itself in the middle of what is measured.
    await connection.execute("VACUUM ANALYZE keys, secrets")
