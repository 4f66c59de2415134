"""What was used, summed up for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from authz.adapters.postgres import translated_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from authz.adapters.postgres import Connection

    Sums = asyncpg.Record

# What requests are grouped by, in the words of the table.
GROUPS = {
    "key": "key_id",
    "owner": "owner",
    "model": "nullif(model, '')",
    "day": "to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}

# The hour in which a time lies counts as a whole.
_SUMS = """
SELECT {group} AS group,
       sum(requests)::bigint AS requests,
       sum(input_tokens)::bigint AS input_tokens,
       sum(output_tokens)::bigint AS output_tokens,
       sum(estimated)::bigint AS estimated,
       sum(failed)::bigint AS failed,
       sum(aborted)::bigint AS aborted,
       (sum(duration_ms) / sum(requests))::bigint AS mean_duration_ms,
       (sum(first_byte_ms) / sum(requests))::bigint AS mean_first_byte_ms
  FROM usage
 WHERE ($1::uuid IS NULL OR key_id = $1) AND ($2::text IS NULL OR owner = $2)
   AND ($3::text IS NULL OR model = $3)
   AND ($4::timestamptz IS NULL OR hour > $4 - interval '1 hour')
 GROUP BY 1
"""
_NAMED = """
SELECT sums.*, keys.name FROM ({sums}) sums LEFT JOIN keys ON keys.id = sums.group
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which requests are wanted; None is all."""

    key_id: UUID | None
    owner: str | None
    model: str | None
    since: datetime | None


async def usage_by(
    connection: Connection, by: str, wanted: Wanted
) -> AsyncIterator[Sums]:
    """Go through the sums of each group; those of keys have the names of keys."""
    statement = _SUMS.format(group=GROUPS[by])
    if by == "key":
        statement = _NAMED.format(sums=statement)
    given = (wanted.key_id, wanted.owner, wanted.model, wanted.since)
    with translated_errors():
        async with connection.transaction(readonly=True):
            ordered = f"{statement} ORDER BY 1"
            async for row in connection.cursor(ordered, *given, prefetch=500):
                yield row
