"""What requests have used, in PostgreSQL: written in batches, each request once."""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg
import structlog

from authz.adapters.postgres import connected, lent, translated_errors
from authz.adapters.postgres_batches import writing
from authz.core.metering import Ending, number, recorded_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from authz.adapters.postgres import Connection, Pool
    from authz.core.metering import Finished, Used
    from authz.metrics import Metrics

TOKENS_TIMEOUT_S = 0.5
# As long as the service may take to end, unless the database is at work.
WRITE_TIMEOUT_S = 2.0
MOST_WAITING = 100_000
# So many are written at once, and without delay: encoding them holds up the requests.
BATCH = 2_000

# The database knows an id for an hour. Whether a batch was written that it did not
# confirm cannot be told for longer; nothing is counted twice.
_UNCERTAIN_FOR = timedelta(minutes=50)

_HOUR_S = 3600
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_TOKENS = """
SELECT coalesce(sum(input_tokens + output_tokens), 0)::bigint
  FROM usage WHERE key_id = $1 AND hour >= $2
"""

# One statement: what it does it does wholly, and may be repeated. In a certain order,
# which keeps the statements of replicas from waiting for each other in a circle.
_WRITE = """
WITH told AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::text[],
                         $6::text[], $7::bigint[], $8::bigint[], $9::bool[],
                         $10::bool[], $11::bool[], $12::bigint[], $13::bigint[])
        AS told (id, hour, key_id, owner, model, endpoint, input_tokens, output_tokens,
                 estimated, failed, aborted, duration_ms, first_byte_ms)
), added AS (
    INSERT INTO usage_requests (id) SELECT id FROM told ORDER BY id
        ON CONFLICT DO NOTHING RETURNING id
)
INSERT INTO usage AS old (
    key_id, hour, model, endpoint, owner, requests, input_tokens, output_tokens,
    estimated, failed, aborted, duration_ms, first_byte_ms
)
SELECT key_id, to_timestamp(hour), model, endpoint, owner, count(*),
       sum(input_tokens), sum(output_tokens),
       count(*) FILTER (WHERE estimated), count(*) FILTER (WHERE failed),
       count(*) FILTER (WHERE aborted), sum(duration_ms), sum(first_byte_ms)
  FROM told JOIN added USING (id)
 GROUP BY key_id, hour, model, endpoint, owner
 ORDER BY key_id, hour, model, endpoint, owner
    ON CONFLICT (key_id, hour, model, endpoint, owner) DO UPDATE SET
       requests = old.requests + excluded.requests,
       input_tokens = old.input_tokens + excluded.input_tokens,
       output_tokens = old.output_tokens + excluded.output_tokens,
       estimated = old.estimated + excluded.estimated,
       failed = old.failed + excluded.failed,
       aborted = old.aborted + excluded.aborted,
       duration_ms = old.duration_ms + excluded.duration_ms,
       first_byte_ms = old.first_byte_ms + excluded.first_byte_ms
"""

# Those that no other replica is about to delete.
_FORGET = """
DELETE FROM usage_requests WHERE id IN (
    SELECT id FROM usage_requests WHERE at < now() - interval '1 hour'
     ORDER BY at LIMIT $1 FOR UPDATE SKIP LOCKED
)
"""


log = structlog.get_logger()


class _Row(NamedTuple):
    """A request as _WRITE takes it."""

    id: str
    hour: int
    key_id: str
    owner: str
    model: str
    endpoint: str
    input_tokens: int
    output_tokens: int
    estimated: bool
    failed: bool
    aborted: bool
    duration_ms: int
    first_byte_ms: int


class PostgresUsageLog:
    """The UsageLog of the service: keeps requests in memory and writes batches."""

    def __init__(self, url: str, now: Callable[[], datetime], metrics: Metrics) -> None:
        self.soon = asyncio.Event()
        self._url = url
        self._now = now
        self._dropped = metrics.usage_dropped
        self._waiting: dict[str, _Row] = {}
        # What is being written; it stays one batch until the database confirms it.
        self._batch: dict[str, _Row] = {}
        self._sent_at: datetime | None = None

    def note(self, finished: Finished, used: Used) -> None:
        """Record a request, once by its id."""
        row = _row(finished, used)
        if row.id in self._waiting or row.id in self._batch:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._dropped.labels("full").inc()
            return
        self._waiting[row.id] = row
        if len(self._waiting) == BATCH:
            self.soon.set()

    @property
    def unwritten(self) -> int:
        """How many requests no batch is known to be written with."""
        return len(self._waiting) + len(self._batch)

    def unwritten_tokens(self, key_id: str, begin: int) -> int:
        """Return the tokens of a key that no batch has been tried with."""
        return sum(
            row.input_tokens + row.output_tokens
            for row in self._waiting.values()
            if row.key_id == key_id and row.hour >= begin
        )

    async def write(self) -> None:
        """Write what was noted; on StoreUnavailable it is kept for the next time."""
        if not (self._batch or self._waiting):
            return
        loop = asyncio.get_running_loop()
        with translated_errors():
            async with (
                asyncio.timeout(WRITE_TIMEOUT_S) as limit,
                connected(self._url) as connection,
            ):
                while self._next_batch():
                    limit.reschedule(loop.time() + WRITE_TIMEOUT_S)
                    written = len(self._batch)
                    await self._write_batch(connection)
                    # More than are added, so that it ends with none too many.
                    await connection.execute(_FORGET, 2 * written)

    def _next_batch(self) -> bool:
        if self._sent_at and self._now() - self._sent_at > _UNCERTAIN_FOR:
            self._dropped.labels("uncertain").inc(len(self._batch))
            self._batch, self._sent_at = {}, None
        if not self._batch:
            self._batch = dict(islice(self._waiting.items(), BATCH))
            for row_id in self._batch:
                del self._waiting[row_id]
        return bool(self._batch)

    async def _write_batch(self, connection: Connection) -> None:
        self._sent_at = self._sent_at or self._now()
        try:
            await connection.execute(_WRITE, *zip(*self._batch.values(), strict=True))
        except asyncpg.PostgresError:
            if not connection.is_closed():
                self._sent_at = None  # the database says itself that it did nothing
            raise
        self._batch, self._sent_at = {}, None


@asynccontextmanager
async def logging_usage(
    url: str, now: Callable[[], datetime], metrics: Metrics
) -> AsyncIterator[PostgresUsageLog]:
    """Write in the background while the block runs, and what is left after it."""
    usage = PostgresUsageLog(url, now, metrics)
    async with writing(usage.write, "usage_unwritten", usage.soon):
        yield usage
    if usage.unwritten:
        # No metric of this process will be read any more.
        log.error("usage_lost", requests=usage.unwritten)


class PostgresUsage:
    """The UsageRecords of the service."""

    def __init__(self, pool: Pool, log: PostgresUsageLog) -> None:
        self._pool = pool
        self._log = log

    async def tokens_since(self, key_id: str, begin: int) -> int:
        """Return the tokens of a key since a moment in seconds since 1970.

        With those that are not written here yet, but for a batch that is just being
        written: nothing is counted twice.
        """
        since = datetime.fromtimestamp(begin, UTC)
        with translated_errors():
            async with asyncio.timeout(TOKENS_TIMEOUT_S), lent(self._pool) as found:
                tokens: int = await found.fetchval(_TOKENS, UUID(key_id), since)
        return tokens + self._log.unwritten_tokens(key_id, begin)


def _row(finished: Finished, used: Used) -> _Row:
    return _Row(
        _id(finished.request_id),
        finished.began // _HOUR_S * _HOUR_S,
        finished.key_id,
        finished.owner,
        recorded_model(finished),
        finished.endpoint,
        used.input_tokens,
        used.output_tokens,
        used.estimated,
        used.ending is Ending.FAILED,
        used.ending is Ending.ABORTED,
        number(finished.duration_ms) or 0,
        number(finished.first_byte_ms) or 0,
    )


def _id(request_id: str) -> str:
    """Return Envoy's id as it is, another's as a UUID that stands for it alone."""
    if _UUID.fullmatch(request_id):
        return request_id
    return hashlib.blake2b(request_id.encode(), digest_size=16).hexdigest()
