"""What requests have used, in PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from authz.adapters.postgres import translated_errors

if TYPE_CHECKING:
    from authz.adapters.postgres import Pool

TOKENS_TIMEOUT_S = 0.5

_TOKENS = """
SELECT coalesce(sum(input_tokens + output_tokens), 0)::bigint
  FROM usage WHERE key_id = $1 AND hour >= $2
"""


class PostgresUsage:
    """The UsageRecords of the service."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def tokens_since(self, key_id: str, begin: int) -> int:
        """Return the tokens of a key since a moment in seconds since 1970."""
        since = datetime.fromtimestamp(begin, UTC)
        with translated_errors():
            async with asyncio.timeout(TOKENS_TIMEOUT_S), self._pool.acquire() as found:
                tokens: int = await found.fetchval(_TOKENS, UUID(key_id), since)
        return tokens
