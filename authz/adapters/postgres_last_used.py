"""When each secret was last used, to the minute, written apart from the requests."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING

from authz.adapters.postgres import connected, translated_errors
from authz.adapters.postgres_batches import WRITE_EVERY_S, writing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

# A secret is noted once in this time: its row is written no more often.
NOTE_AGAIN_S = 60.0
# As long as the service may take to end.
WRITE_TIMEOUT_S = 2.0
MOST_SECRETS = 100_000
_BATCH = 1_000

# Only of secrets that are still there. Replicas write in no certain order; that
# of the digests keeps two statements from waiting for each other.
_WRITE = """
INSERT INTO last_used (digest, at)
SELECT used.digest, used.at
  FROM unnest($1::bytea[], $2::timestamptz[]) AS used (digest, at)
  JOIN secrets USING (digest)
 ORDER BY used.digest
    ON CONFLICT (digest) DO UPDATE SET at = excluded.at
 WHERE last_used.at < excluded.at
"""


class LastUsed:
    """Notes uses in memory and writes them in batches; the UseLog of the service."""

    def __init__(self, url: str, now: Callable[[], datetime]) -> None:
        self._url = url
        self._now = now
        self._noted: set[bytes] = set()
        self._unwritten: dict[bytes, datetime] = {}
        self._turns = 0

    def note(self, digest: bytes) -> None:
        """Remember that a secret was used now."""
        if digest in self._noted:
            return
        if max(len(self._noted), len(self._unwritten)) < MOST_SECRETS:
            self._noted.add(digest)
            self._unwritten[digest] = self._now()

    def note_again(self) -> None:
        """Let every secret be noted once more."""
        self._noted = set()

    async def write(self) -> None:
        """Write what was noted; on StoreUnavailable it is kept for the next time."""
        if not self._unwritten:
            return
        with translated_errors():
            async with asyncio.timeout(WRITE_TIMEOUT_S), connected(self._url) as found:
                while self._unwritten:
                    batch = dict(islice(self._unwritten.items(), _BATCH))
                    digests, moments = list(batch), list(batch.values())
                    await found.execute(_WRITE, digests, moments)
                    for digest in batch:
                        del self._unwritten[digest]

    async def write_in_turn(self) -> None:
        """Write; from time to time every secret may be noted once more."""
        self._turns += 1
        try:
            await self.write()
        finally:
            if self._turns % round(NOTE_AGAIN_S / WRITE_EVERY_S) == 0:
                self.note_again()


@asynccontextmanager
async def noting_uses(url: str, now: Callable[[], datetime]) -> AsyncIterator[LastUsed]:
    """Write in the background while the block runs, and what is left after it."""
    last_used = LastUsed(url, now)
    async with writing(last_used.write_in_turn, "last_used_unwritten"):
        yield last_used
