"""Commands of several callers in one write: to tell Redis costs more than to ask it.

While one batch is under way the next one gathers, so a lone command waits for nobody;
where that one takes long, or the next is full, it is not waited for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hiredis import pack_command
from redis.exceptions import ResponseError

from authz.adapters.redis_client import TIMEOUT_S, in_time, translated_errors
from authz.errors import CacheUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

    Command = tuple[str | int, ...]
    Waiting = tuple[Command, asyncio.Future[Any]]

# The last of so many scripts has its answer in time.
_MOST = 64
# Longer than a server nearby takes for most of them.
_PATIENCE_S = 0.002
_MOST_UNDER_WAY = 4


class RedisBatches:
    """Runs commands on one server."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[Waiting] = []
        self._sending: set[asyncio.Task[None] | None] = set()
        self._sent_at = 0.0

    async def run(self, *command: str | int) -> Any:  # noqa: ANN401 - Redis's
        """Return the answer. Raises CacheUnavailable, and what Redis says is wrong."""
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self._waiting.append((command, answer))
        if not self._sending or len(self._waiting) >= _MOST:
            self._send_more()
        elif len(self._waiting) == 1:
            loop.call_later(_PATIENCE_S, self._send_if_overdue)
        return await answer

    def _send_if_overdue(self) -> None:
        late_s = asyncio.get_running_loop().time() - self._sent_at
        if self._waiting and late_s >= _PATIENCE_S:
            self._send_more()

    def _send_more(self) -> None:
        if len(self._sending) < _MOST_UNDER_WAY:
            self._sending.add(asyncio.create_task(self._send_all()))

    async def _send_all(self) -> None:
        """Send what waits; where that fails, so does what nobody else will send."""
        batch: Sequence[Waiting] = ()
        reason = "not sent"
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                self._sent_at = asyncio.get_running_loop().time()
                await self._send(batch)
        except CacheUnavailable as error:
            reason = str(error)
        finally:
            self._sending.discard(asyncio.current_task())
            left = list(batch)
            if not self._sending:
                left, self._waiting = left + self._waiting, []
            for _, answer in left:
                if not answer.done():
                    answer.set_exception(CacheUnavailable(reason))

    async def _send(self, batch: Sequence[Waiting]) -> None:
        """Write a batch and hand out its answers, as they come.

        On the connection itself: the client's own pipeline takes twice as long. A
        connection that fails is closed by the driver.
        """
        pool = self._redis.connection_pool
        with translated_errors():
            async with in_time(TIMEOUT_S):
                connection = await pool.get_connection()  # type: ignore[no-untyped-call] # theirs
                try:
                    packed = [pack_command(command) for command, _ in batch]  # type: ignore[arg-type] # theirs
                    await connection.send_packed_command(packed)
                    for _, answer in batch:
                        await _hand_out(connection, answer)
                finally:
                    await pool.release(connection)


async def _hand_out(
    connection: AbstractConnection, answer: asyncio.Future[Any]
) -> None:
    try:
        said = await connection.read_response()
    except ResponseError as error:
        if not answer.done():  # somebody waits for it yet
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(said)
