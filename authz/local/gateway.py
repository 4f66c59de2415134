"""The whole gateway on one machine, started in order and stopped in the opposite."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.errors import ConfigError
from authz.local.data_dir import kept_secret, write_private
from authz.local.envoy import Places, write_config
from authz.local.postgres import embedded_postgres
from authz.local.process import private_directory
from authz.local.redis import embedded_redis
from authz.local.stack import (
    answers,
    free_port,
    running_authz,
    running_envoy,
    running_standin,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from authz.local.envoy import Address
    from authz.local.process import Child

DEFAULT_UPSTREAM = ("127.0.0.1", 11434)
DEFAULT_METRICS = ("127.0.0.1", 9464)
DEFAULT_ENVOY_METRICS = ("127.0.0.1", 9465)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start.

    Without ``upstream`` it is Ollama's usual address or, if nothing answers
    there, the stand-in. The URLs are empty where own stores are to be started.
    """

    data_dir: Path
    listen: Address
    upstream: Address | None
    workers: int
    metrics: Address | None
    database_url: str
    redis_url: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """What runs, and where."""

    places: Places
    metrics: Address
    database_url: str
    children: tuple[Child, ...]

    @property
    def url(self) -> str:
        """Where clients call."""
        return _url(self.places.listen)

    @property
    def metrics_urls(self) -> str:
        """Where Prometheus reads: the service and Envoy."""
        envoy = f"{_url(self.places.metrics)}/stats/prometheus"
        return f"{_url(self.metrics)}/metrics {envoy}"

    @property
    def standin(self) -> bool:
        """Whether a stand-in plays Ollama, so that answers are made up."""
        return isinstance(self.places.upstream, Path)


@asynccontextmanager
async def running_gateway(plan: Plan) -> AsyncIterator[Gateway]:
    """Run everything until the block ends. Raises ConfigError, ChildDied."""
    for address in filter(None, (plan.listen, plan.metrics)):
        if _is_taken(address):
            msg = f"port {address[1]} of {address[0]} is taken"
            raise ConfigError(msg)
    (plan.data_dir / "logs").mkdir(mode=0o700, exist_ok=True)
    async with AsyncExitStack() as stack:
        run = stack.enter_context(private_directory("authz-"))
        yield await _Start(plan, stack, run).everything()


@dataclass
class _Start:
    plan: Plan
    stack: AsyncExitStack
    run: Path
    children: list[Child] = field(default_factory=list)

    async def everything(self) -> Gateway:
        database_url, redis_url = await self.stores()
        upstream = await self.upstream()
        metrics = self.plan.metrics or _free(DEFAULT_METRICS)
        settings = {
            "AUTHZ_DATABASE_URL": database_url,
            "AUTHZ_REDIS_URL": redis_url,
            "AUTHZ_CACHE_SECRET": kept_secret(self.plan.data_dir / "cache-secret"),
            "AUTHZ_LISTEN": str(self.run),
            "AUTHZ_WORKERS": str(self.plan.workers),
        }
        await self.child(running_authz(settings, metrics, log=self.log("authz")))
        places = Places(
            directory=self.plan.data_dir / "envoy",
            run=self.run,
            listen=self.plan.listen,
            metrics=_free(DEFAULT_ENVOY_METRICS),
            upstream=upstream,
            workers=self.plan.workers,
        )
        write_config(places)
        await self.child(running_envoy(places, log=self.log("envoy")))
        return Gateway(places, metrics, database_url, tuple(self.children))

    async def stores(self) -> tuple[str, str]:
        """Start what is not given, and tell the other commands where it is."""
        database_url, redis_url = self.plan.database_url, self.plan.redis_url
        if not database_url:
            database_url = await self.stack.enter_async_context(
                embedded_postgres(
                    self.plan.data_dir / "postgres", started=self.children.append
                )
            )
        if not redis_url:
            own = await self.stack.enter_async_context(
                embedded_redis(
                    self.plan.data_dir / "redis", started=self.children.append
                )
            )
            redis_url = own or ""
        async with connected(database_url) as connection:
            await postgres_schema.migrate(connection)
        told = self.plan.data_dir / "env"
        self.stack.callback(told.unlink, missing_ok=True)
        write_private(
            told,
            f"AUTHZ_DATABASE_URL={database_url}\nAUTHZ_REDIS_URL={redis_url}\n",
        )
        return database_url, redis_url

    async def upstream(self) -> Address | Path:
        if self.plan.upstream is not None:
            return self.plan.upstream
        if await answers(DEFAULT_UPSTREAM, "/api/version"):
            return DEFAULT_UPSTREAM
        socket = self.run / "standin.sock"
        await self.child(running_standin(socket, log=self.log("standin")))
        return socket

    async def child(self, starting: AbstractAsyncContextManager[Child]) -> None:
        self.children.append(await self.stack.enter_async_context(starting))

    def log(self, name: str) -> Path:
        return self.plan.data_dir / "logs" / f"{name}.log"


def _url(address: Address) -> str:
    host, port = address
    return f"http://{host}:{port}"


def _free(address: Address) -> Address:
    """Return the address, or a free port of the same host if it is taken."""
    if not _is_taken(address):
        return address
    return address[0], free_port(address[0])


def _is_taken(address: Address) -> bool:
    with socket.socket() as probe:
        # As servers do: what the last run left in TIME_WAIT is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return True
    return False
