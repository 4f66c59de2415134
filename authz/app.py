"""The composition root: Settings in, a running worker out. Nothing else builds."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

from authz.adapters.body_process import body_process
from authz.adapters.postgres import connected, pooled, refusing_the_hopeless
from authz.adapters.postgres_changes import follow_changes
from authz.adapters.postgres_keys import PostgresKeys, check_peppers
from authz.adapters.postgres_last_used import noting_uses
from authz.adapters.postgres_schema import check_schema
from authz.adapters.postgres_usage import PostgresUsage, logging_usage
from authz.adapters.redis_cache import RedisKeyCache
from authz.adapters.redis_client import redis_client
from authz.adapters.redis_limits import RedisLimits
from authz.authorizer import Authorizer
from authz.config import load_peppers
from authz.edge.access_log import AccessLog
from authz.edge.check import Check
from authz.edge.model_list import ModelLists
from authz.edge.server import serving
from authz.errors import StoreUnavailable
from authz.limiter import Limiter
from authz.lookup import Freshness, Lookup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from authz.adapters.body_process import BodyProcess
    from authz.adapters.postgres import Pool
    from authz.adapters.postgres_usage import PostgresUsageLog
    from authz.adapters.redis_client import Client
    from authz.config import Settings
    from authz.core.credential import Peppers
    from authz.metrics import Metrics, Pools
    from authz.ports import KeyCache

_RETRY_S = 1.0

log = structlog.get_logger()


def socket_path(settings: Settings, worker: int) -> Path:
    """Return where a worker listens; envoy/clusters.yaml lists the same paths."""
    return settings.listen / f"authz-{worker}.sock"


def new_registry() -> CollectorRegistry:
    """Return a registry that already knows this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


async def run_worker(
    settings: Settings, worker: int, metrics: Metrics, stop: asyncio.Event
) -> None:
    """Serve Check until told to stop. Raises ConfigError, SchemaError."""
    url = settings.database_url.get_secret_value()
    peppers = load_peppers(settings)
    await _wait_for_database(url, peppers, stop)
    if stop.is_set():
        return
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(pooled(url))
        redis = await stack.enter_async_context(_redis(settings))
        lookup = Lookup(
            PostgresKeys(pool),
            _key_cache(settings, redis),
            _freshness(settings),
            _now,
            metrics,
        )
        stack.push_async_callback(lookup.aclose)
        uses = await stack.enter_async_context(noting_uses(url, _now))
        usage = await stack.enter_async_context(logging_usage(url, _now, metrics))
        limiter = Limiter(
            None if redis is None else RedisLimits(redis),
            PostgresUsage(pool, usage),
            _now,
            metrics,
            alone=settings.workers == 1,
        )
        _in_background(stack, limiter.keep_settling())
        following = _in_background(
            stack, follow_changes(url, lookup, partial(_note_lag, metrics))
        )
        large_bodies = await stack.enter_async_context(body_process())
        authorizer = Authorizer(lookup, peppers, _now, large_bodies, limiter)
        check = Check(authorizer, metrics, uses)
        logs = AccessLog(limiter, usage, _now, metrics)
        _in_background(stack, _read_pools(metrics.pools, pool, large_bodies, usage))
        socket = socket_path(settings, worker)
        await stack.enter_async_context(serving(check, ModelLists(), logs, socket))
        log.info("serving", socket=str(socket))
        await _until(stop, following)
        log.info("stopping", socket=str(socket))


def _note_lag(metrics: Metrics, moment: float) -> None:
    metrics.heard_after(_now().timestamp() - moment)


async def _read_pools(
    gauges: Pools, pool: Pool, large_bodies: BodyProcess, usage: PostgresUsageLog
) -> None:
    await gauges.keep_reading(
        {
            gauges.connections_open: pool.get_size,
            gauges.connections_used: lambda: pool.get_size() - pool.get_idle_size(),
            gauges.connections_most: pool.get_max_size,
            gauges.large_bodies: lambda: large_bodies.queued_bytes,
            gauges.usage_waiting: lambda: usage.unwritten,
        }
    )


def _in_background(
    stack: AsyncExitStack, work: Coroutine[None, None, None]
) -> asyncio.Task[None]:
    """Start work that never ends by itself; it is cancelled with the stack."""
    task = asyncio.create_task(work)
    stack.callback(task.cancel)
    return task


async def _until(stop: asyncio.Event, failing: asyncio.Task[None]) -> None:
    """Wait for the event, or for a task that only ends by an error, and raise that."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
    if failing.done():
        stopping.cancel()
        await failing


async def _wait_for_database(url: str, peppers: Peppers, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            with refusing_the_hopeless(url):
                async with connected(url) as connection:
                    await check_schema(connection)
                    return await check_peppers(connection, peppers.ids)
        except StoreUnavailable as error:
            log.warning("database_unavailable", error=str(error))
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _RETRY_S)
    return None


@asynccontextmanager
async def _redis(settings: Settings) -> AsyncIterator[Client | None]:
    url = settings.redis_url.get_secret_value()
    if not url:
        yield None
        return
    async with redis_client(url) as redis:
        yield redis


def _key_cache(settings: Settings, redis: Client | None) -> KeyCache | None:
    secret = settings.cache_secret.get_secret_value()
    if redis is None or not secret:
        return None
    lifetime = timedelta(seconds=max(settings.cache_ttl_s, settings.max_stale_s))
    return RedisKeyCache(redis, secret.encode(), lifetime)


def _freshness(settings: Settings) -> Freshness:
    return Freshness(
        ttl=timedelta(seconds=settings.cache_ttl_s),
        max_stale=timedelta(seconds=settings.max_stale_s),
        size=settings.cache_size,
        misses_per_s=settings.unknown_keys_per_s,
    )


def _now() -> datetime:
    return datetime.now(UTC)
