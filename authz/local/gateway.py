"""The whole gateway on one machine, started in order and stopped in the opposite."""

from __future__ import annotations

import errno
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
from authz.local.process import private_directory, wait_until_ready
from authz.local.redis import embedded_redis
from authz.local.stack import (
    answers,
    drained,
    free_port,
    running_authz,
    running_envoy,
    running_standin,
    url_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from authz.local.envoy import Address
    from authz.local.process import Child

DEFAULT_UPSTREAM = ("127.0.0.1", 11434)
DEFAULT_METRICS = ("127.0.0.1", 9464)
DEFAULT_ENVOY_METRICS = ("127.0.0.1", 9465)

_LISTENING_S = 5.0


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
        return url_of(self.places.listen)

    @property
    def metrics_urls(self) -> str:
        """Where Prometheus reads: the service and Envoy."""
        envoy = f"{url_of(self.places.metrics)}/stats/prometheus"
        return f"{url_of(self.metrics)}/metrics {envoy}"

    @property
    def standin(self) -> bool:
        """Whether a stand-in plays Ollama, so that answers are made up."""
        return isinstance(self.places.upstream, Path)


@asynccontextmanager
async def running_gateway(plan: Plan) -> AsyncIterator[Gateway]:
    """Run everything until the block ends. Raises ConfigError, ChildDied."""
    for address in filter(None, (plan.listen, plan.metrics)):
        if reason := _why_not(address):
            msg = f"cannot listen on port {address[1]} of {address[0]}: {reason}"
            raise ConfigError(msg)
    (plan.data_dir / "logs").mkdir(mode=0o700, exist_ok=True)
    async with AsyncExitStack() as stack:
        run = stack.enter_context(private_directory("authz-"))
        metrics = plan.metrics or _free(DEFAULT_METRICS)
        yield await _Start(plan, stack, run, metrics).everything()


@dataclass
class _Start:
    plan: Plan
    stack: AsyncExitStack
    run: Path
    metrics: Address
    children: list[Child] = field(default_factory=list)

    async def everything(self) -> Gateway:
        database_url, redis_url = await self.stores()
        self.tell_other_commands(database_url, redis_url)
        upstream = await self.upstream()
        settings = {
            "AUTHZ_DATABASE_URL": database_url,
            "AUTHZ_REDIS_URL": redis_url,
            "AUTHZ_CACHE_SECRET": kept_secret(self.plan.data_dir / "cache-secret"),
            "AUTHZ_LISTEN": str(self.run),
            "AUTHZ_WORKERS": str(self.plan.workers),
        }
        authz = running_authz(settings, self.metrics, log=self.log("authz"))
        await self.child(authz)
        places = Places(
            directory=self.plan.data_dir / "envoy",
            run=self.run,
            listen=self.plan.listen,
            metrics=_free(DEFAULT_ENVOY_METRICS),
            upstream=upstream,
            workers=self.plan.workers,
        )
        write_config(places)
        envoy = await self.child(running_envoy(places, log=self.log("envoy")))
        await self.stack.enter_async_context(drained(places))
        # Envoy is ready also with a listener that it has refused.
        await wait_until_ready(
            envoy, lambda: answers(self.plan.listen, "/healthz"), _LISTENING_S
        )
        return Gateway(places, self.metrics, database_url, tuple(self.children))

    async def stores(self) -> tuple[str, str]:
        """Start the stores that are not given, and bring the schema up to date."""
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
            await postgres_schema.add_months(connection)
        return database_url, redis_url

    def tell_other_commands(self, database_url: str, redis_url: str) -> None:
        file = self.plan.data_dir / "env"
        self.stack.callback(file.unlink, missing_ok=True)
        self.tell_healthcheck()
        host, port = self.metrics
        write_private(
            file,
            f"AUTHZ_DATABASE_URL='{database_url}'\n"
            f"AUTHZ_REDIS_URL='{redis_url}'\n"
            f"AUTHZ_METRICS_LISTEN='{host}:{port}'\n",
        )

    def tell_healthcheck(self) -> None:
        """Say where the sockets are, and not in ``env``: a service would take them."""
        link = self.plan.data_dir / "run"
        link.unlink(missing_ok=True)
        link.symlink_to(self.run)
        self.stack.callback(link.unlink, missing_ok=True)

    async def upstream(self) -> Address | Path:
        if self.plan.upstream is not None:
            return self.plan.upstream
        if await answers(DEFAULT_UPSTREAM, "/api/version"):
            return DEFAULT_UPSTREAM
        socket = self.run / "standin.sock"
        await self.child(running_standin(socket, log=self.log("standin")))
        return socket

    async def child(self, starting: AbstractAsyncContextManager[Child]) -> Child:
        child = await self.stack.enter_async_context(starting)
        self.children.append(child)
        return child

    def log(self, name: str) -> Path:
        return self.plan.data_dir / "logs" / f"{name}.log"


def _free(address: Address) -> Address:
    """Return the address, or a free port of the same host if it is taken."""
    if not _why_not(address):
        return address
    return address[0], free_port(address[0])


def _why_not(address: Address) -> str | None:
    """Return why nobody can listen there now; None if somebody can."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: what the last run left in TIME_WAIT is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            return "it is taken" if taken else str(error.strerror)
    return None
