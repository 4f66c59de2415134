"""What keys have used, shared by the replicas in Redis; limits.lua has the rules."""

from __future__ import annotations

import hashlib
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.asyncio import RedisCluster
from redis.exceptions import NoScriptError

from authz.adapters.redis_batches import RedisBatches
from authz.adapters.redis_client import TIMEOUT_S, in_time, translated_errors
from authz.core.limits import Limit, Outcome, Quota

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from authz.adapters.redis_client import Client
    from authz.core.limits import Demand, Limits, Recorded

    Send = Callable[..., Awaitable[Any]]

SCRIPT = files(__package__).joinpath("limits.lua").read_text()


class RedisLimits:
    """The LimitStore of several replicas. All raise CacheUnavailable."""

    def __init__(self, redis: Client, script: str = SCRIPT) -> None:
        # In a Cluster, what is under way to one server must not wait for another.
        self._send: Send = (
            partial(_send_alone, redis)
            if isinstance(redis, RedisCluster)
            else RedisBatches(redis).run
        )
        self._script = script
        self._sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()

    async def reserve(
        self, key_id: str, limits: Limits, demand: Demand, recorded: Recorded | None
    ) -> Outcome | int:
        """Admit or refuse; or return since when what is recorded must be told."""
        period = demand.period
        refused, wait_s, *left = await self._run(
            key_id,
            "reserve",
            demand.request_id,
            *(demand.tokens, limits.rpm, limits.tpm, limits.concurrency),
            limits.budget.tokens if limits.budget else None,
            *(period.previous, period.begin, period.end, period.next_end),
            *((recorded.since, recorded.tokens) if recorded else (None, None)),
        )
        if refused == b"unknown":
            return int(wait_s)
        requests = Quota(limits.rpm, *left[:2]) if limits.rpm else None
        tokens = Quota(limits.tpm, *left[2:4]) if limits.tpm else None
        slots_left = left[4] if limits.concurrency else None
        limit = Limit(refused.decode()) if refused else None
        return Outcome(limit, wait_s, requests, tokens, slots_left)

    async def settle(self, key_id: str, request_id: str, tokens: int | None) -> bool:
        """End a request that used so many tokens; None keeps what it holds."""
        return bool(await self._run(key_id, "settle", request_id, tokens))

    async def renew(self, key_id: str, request_id: str) -> bool:
        """Keep what a request holds that still runs."""
        return bool(await self._run(key_id, "renew", request_id))

    async def spend(self, key_id: str, begin: int, tokens: int) -> None:
        """Take in what is recorded of a budget; more may have been used since."""
        await self._run(key_id, "spend", begin, tokens)

    async def _run(self, key_id: str, call: str, *arguments: str | int | None) -> Any:  # noqa: ANN401 - Lua's
        # What stands in braces chooses the slot: all of a key is in one.
        of_key = f"authz:limits:2:{{{key_id}}}"
        names = (
            of_key,
            f"{of_key}:spent",
            f"{of_key}:running",
            f"{of_key}:held:{arguments[0]}",
        )
        given = (call, *("" if each is None else each for each in arguments))
        with translated_errors():
            try:
                return await self._send("EVALSHA", self._sha, 4, *names, *given)
            except NoScriptError:
                return await self._send("EVAL", self._script, 4, *names, *given)


async def _send_alone(redis: RedisCluster, *command: str | int) -> Any:  # noqa: ANN401 - Redis's
    async with in_time(TIMEOUT_S):
        return await redis.execute_command(*command)
