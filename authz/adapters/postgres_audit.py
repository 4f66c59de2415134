"""Who changed which key, and how; neither secrets nor digests are in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from authz.adapters.postgres import translated_errors
from authz.ports import rfc3339

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from authz.adapters.postgres import Connection
    from authz.ports import KeyRecord, NewKey, SecretRecord

    State = Mapping[str, object]

_NOTE = """
INSERT INTO audit (actor, action, key_id, before, after) VALUES ($1, $2, $3, $4, $5)
"""
_EVENTS = """
SELECT id, at, actor, database_role, action, key_id, before, after
  FROM audit
 WHERE ($1::uuid IS NULL OR key_id = $1) AND ($2::timestamptz IS NULL OR at >= $2)
 ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that was made; before a key's first and after its last is nothing."""

    action: str
    key_id: UUID
    before: State | None
    after: State


@dataclass(frozen=True, slots=True)
class Event:
    """A change as it was written down."""

    id: int
    at: datetime
    actor: str
    database_role: str
    action: str
    key_id: UUID
    before: dict[str, Any] | None
    after: dict[str, Any] | None


async def note(connection: Connection, actor: str, changes: Sequence[Change]) -> None:
    """Write changes down, in the transaction that makes them."""
    rows = [
        (
            actor,
            change.action,
            change.key_id,
            None if change.before is None else json.dumps(change.before),
            json.dumps(change.after),
        )
        for change in changes
    ]
    await connection.executemany(_NOTE, rows)


async def events(
    connection: Connection, key_id: UUID | None, since: datetime | None
) -> AsyncIterator[Event]:
    """Go through what was written down, oldest first."""
    with translated_errors():
        async with connection.transaction(readonly=True):
            async for row in connection.cursor(_EVENTS, key_id, since, prefetch=500):
                states = {
                    name: row[name] and json.loads(row[name])
                    for name in ("before", "after")
                }
                yield Event(**{**row, **states})


def state_of_new(key: NewKey) -> State:
    """Return what a key is on its first day."""
    return _state(key) | {
        "disabled": False,
        "revoked_at": None,
        "secrets": [{"prefix": key.secret.prefix, "expires_at": None}],
    }


def state_of(key: KeyRecord, secrets: Sequence[SecretRecord]) -> State:
    """Return what a key is now."""
    return _state(key) | {
        "disabled": key.disabled,
        "revoked_at": rfc3339(key.revoked_at),
        "secrets": [
            {"prefix": secret.prefix, "expires_at": rfc3339(secret.expires_at)}
            for secret in secrets
        ],
    }


def _state(key: NewKey | KeyRecord) -> dict[str, object]:
    return {
        "name": key.name,
        "owner": key.owner,
        "models": list(key.models),
        "scopes": list(key.scopes),
        "parameters": str(key.parameters),
        "limits": str(key.limits),
        "expires_at": rfc3339(key.expires_at),
    }
