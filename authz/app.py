"""The composition root: Settings in, a running worker out. Nothing else builds."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

from authz.adapters.body_process import body_process
from authz.adapters.postgres import connected, pooled, why_never
from authz.adapters.postgres_changes import follow_changes
from authz.adapters.postgres_keys import PostgresKeys, check_peppers
from authz.adapters.postgres_last_used import noting_uses
from authz.adapters.postgres_schema import check_schema
from authz.adapters.redis_cache import RedisKeyCache
from authz.adapters.postgres_usage import PostgresUsage
from authz.adapters.redis_client import redis_client
from authz.adapters.redis_limits import RedisLimits
from authz.authorizer import Authorizer
from authz.config import load_peppers
from authz.edge.check import Check
from authz.edge.model_list import ModelLists
from authz.edge.server import serving
from authz.errors import ConfigError, StoreUnavailable
from authz.limiter import Limiter
from authz.lookup import Freshness, Lookup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from authz.adapters.redis_client import Client
    from authz.config import Settings
    from authz.core.credential import Peppers
    from authz.metrics import Metrics
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
        cache = _key_cache(settings, redis)
        lookup = Lookup(PostgresKeys(pool), cache, _freshness(settings), _now, metrics)
        limiter = Limiter(
            None if redis is None else RedisLimits(redis),
            PostgresUsage(pool),
            _now,
            metrics,
            alone=settings.workers == 1,
        )
        settling = asyncio.create_task(limiter.keep_settling())
        stack.callback(settling.cancel)
        following = asyncio.create_task(follow_changes(url, lookup))
        stack.callback(following.cancel)
        uses = await stack.enter_async_context(noting_uses(url, _now))
        large_bodies = await stack.enter_async_context(body_process())
        authorizer = Authorizer(lookup, peppers, _now, large_bodies, limiter)
        check = Check(authorizer, metrics, uses)
        socket = socket_path(settings, worker)
        await stack.enter_async_context(serving(check, ModelLists(), socket))
        log.info("serving", socket=str(socket))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, following}, return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping", socket=str(socket))
        if following.done():
            stopping.cancel()
            await following  # it never ends but by an error


async def _wait_for_database(url: str, peppers: Peppers, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            async with connected(url) as connection:
                await check_schema(connection)
                return await check_peppers(connection, peppers.ids)
        except StoreUnavailable as error:
            reason = why_never(error, url)
            if reason is not None:
                msg = f"AUTHZ_DATABASE_URL: {reason}"
                raise ConfigError(msg) from None
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
