"""The programs of a run, each started on its own and stopped with the run.

What is measured against what is for subjects.py to say.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.core.limits import parse_limits
from authz.core.model import Scope
from authz.edge import GRPC_EXPERIMENTS
from authz.issuing import issue
from authz.local.envoy import Places, envoy_binary, write_config
from authz.local.postgres import embedded_postgres
from authz.local.process import private_directory, running, wait_until_ready
from authz.local.redis import embedded_redis
from authz.local.stack import (
    answers,
    free_port,
    got,
    listening_port,
    running_authz,
    running_envoy,
)
from benchmarks.listeners import at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from authz.local.envoy import Address
    from authz.local.process import Child

    # Takes a part of Envoy's configuration and changes it.
    Change = Callable[[dict[str, Any]], None]

_UPSTREAM_CONFIG = Path(__file__).with_name("upstream.yaml")
_SOCKET = "authz-0.sock"
_START_S = 20.0
_SLOW_START_S = 120.0
# With a star, because a literal name is found by a single look into a set.
MODELS = ("registry.ollama.ai/library/llama3.*:*",)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running Envoy: where clients reach it, its process, its version and folder."""

    port: int
    pid: int
    version: str
    run: Path

    async def counted(self, name: str) -> int:
        """Return the sum of its counters with such a name."""
        async with got(self.run / "admin.sock", f"/stats?filter={name}") as response:
            lines = (await response.text()).splitlines()
        return sum(int(line.rpartition(" ")[2]) for line in lines)


@dataclass(frozen=True, slots=True)
class Stores:
    """A running PostgreSQL with our schema, and a Redis where one can be had."""

    database_url: str
    redis_url: str | None
    cache_secret: str
    pids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Service:
    """A running `authz serve` and its stores; ``pids`` are those of all, by name."""

    socket: Path
    metrics: Address
    database_url: str
    redis_url: str | None
    pids: Mapping[str, int]


@asynccontextmanager
async def starting() -> AsyncIterator[Parts]:
    """Offer to start parts, which run until the block ends."""
    async with AsyncExitStack() as stack:
        yield Parts(stack, stack.enter_context(private_directory("authz-bench-")))


@dataclass(frozen=True, slots=True)
class Parts:
    """What can be started. Every method may raise ConfigError or ChildDied.

    ``workplace`` is private.
    """

    stack: AsyncExitStack
    workplace: Path

    @property
    def upstream(self) -> Path:
        """The socket of the server that stands behind every Envoy."""
        return self.workplace / "upstream.sock"

    async def constant_upstream(self) -> int:
        """Run the server of upstream.yaml, on a port too, which is returned."""
        config = yaml.safe_load(_UPSTREAM_CONFIG.read_text())
        port = free_port()
        listener = config["static_resources"]["listeners"][1]
        listener["address"]["socket_address"]["port_value"] = port
        path = self.workplace / _UPSTREAM_CONFIG.name
        path.write_text(yaml.safe_dump(config))
        command = (
            str(envoy_binary()),
            *("--config-path", str(path)),
            *("--concurrency", "1"),
            "--disable-hot-restart",
            *("--log-level", "warning"),
        )
        log = self.workplace / "upstream.log"
        child = await self._child(
            running("upstream", command, log=log, cwd=self.workplace)
        )
        await wait_until_ready(child, lambda: answers(self.upstream, "/"), _START_S)
        return port

    async def floor(self) -> tuple[Path, int]:
        """Run the service that allows everything; return its socket and process."""
        run = self.folder("floor-service")
        socket = run / _SOCKET
        command = (sys.executable, "-m", "benchmarks.floor", str(socket))
        # The floor does not import authz.edge, which sets this for the gateway.
        env = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS, **os.environ}
        child = await self._child(
            running("floor", command, log=run / "authz.log", env=env)
        )
        await wait_until_ready(child, lambda: _accepts(socket), _START_S)
        return socket, child.process.pid

    async def web_server(
        self, name: str, port: int, command: Sequence[str], env: Mapping[str, str]
    ) -> int:
        """Run a server of HTTP; return its process."""
        log = self.workplace / f"{name}.log"
        child = await self._child(
            running(name, command, log=log, env=env, cwd=self.workplace)
        )
        await wait_until_ready(child, lambda: _accepts(port), _SLOW_START_S)
        return child.process.pid

    async def service(self) -> Service:
        """Run `authz serve` with its stores, which are empty."""
        return await self.authz("gateway-service", await self.stores())

    async def stores(self) -> Stores:
        """Run PostgreSQL and Redis, which are empty."""
        run = self.folder("stores")
        children: list[Child] = []
        database_url = await self.stack.enter_async_context(
            embedded_postgres(run / "postgres", started=children.append)
        )
        redis_url = await self.stack.enter_async_context(
            embedded_redis(run / "redis", started=children.append)
        )
        async with connected(database_url) as connection:
            await postgres_schema.migrate(connection)
        pids = {child.name: child.process.pid for child in children}
        return Stores(database_url, redis_url, secrets.token_hex(32), pids)

    async def authz(self, name: str, stores: Stores, workers: int = 1) -> Service:
        """Run `authz serve`."""
        run = self.folder(name)
        settings = {
            "AUTHZ_DATABASE_URL": stores.database_url,
            "AUTHZ_REDIS_URL": stores.redis_url or "",
            "AUTHZ_CACHE_SECRET": stores.cache_secret,
            "AUTHZ_LISTEN": str(run),
            "AUTHZ_WORKERS": str(workers),
        }
        metrics = ("127.0.0.1", free_port())
        child = await self._child(
            running_authz(settings, metrics, log=run / "authz.log")
        )
        pids = {**stores.pids, child.name: child.process.pid}
        places = (run / _SOCKET, metrics, stores.database_url, stores.redis_url)
        return Service(*places, pids)

    async def envoy(
        self,
        name: str,
        service: Path | Address,
        change: Change | None = None,
        model_server: Change | None = None,
        workers: int = 1,
    ) -> Proxy:
        """Run an Envoy that asks the service, on its sockets or at an address.

        ``change`` and ``model_server`` may change its listener, and its cluster of
        that name.
        """
        run = self.folder(name)
        if isinstance(service, Path):
            for worker in range(workers):
                socket = f"authz-{worker}.sock"
                (run / socket).symlink_to(service.with_name(socket))
        places = Places(
            directory=run / "envoy",
            run=run,
            listen=("127.0.0.1", 0),
            metrics=("127.0.0.1", 0),
            upstream=self.upstream,
            workers=workers,
        )
        write_config(places)
        if change:
            _rewrite(places.directory / "listener.yaml", "gateway", change)
        if model_server:
            _rewrite(places.directory / "clusters.yaml", "ollama", model_server)
        if not isinstance(service, Path):
            for cluster in ("authz", "authz-log"):
                _rewrite(places.directory / "clusters.yaml", cluster, at(*service))
        child = await self._child(running_envoy(places, log=run / "envoy.log"))
        return Proxy(
            await listening_port(places), child.process.pid, await _version(run), run
        )

    async def _child(self, part: AbstractAsyncContextManager[Child]) -> Child:
        return await self.stack.enter_async_context(part)

    def folder(self, name: str) -> Path:
        """Make a private folder, with a name that may stand in addresses."""
        folder = self.workplace / re.sub("[^a-z0-9]+", "-", name.lower())
        folder.mkdir(mode=0o700)
        return folder


def _rewrite(path: Path, name: str, change: Change) -> None:
    config = yaml.safe_load(path.read_text())
    change(next(part for part in config["resources"] if part["name"] == name))
    path.write_text(yaml.safe_dump(config, sort_keys=False))


async def new_key(
    database_url: str, models: Sequence[str] = MODELS, limits: str = ""
) -> str:
    """Create a key that may do what the loads ask for; return the raw one."""
    new, raw_key = issue(
        f"key {secrets.token_hex(8)}",
        models=models,
        scopes=[Scope.INFERENCE.value],
        expires_at=None,
        limits=parse_limits(limits),
    )
    async with connected(database_url) as connection:
        await PostgresKeyWriter(connection).create(new)
    return raw_key


async def _version(run: Path) -> str:
    async with got(run / "admin.sock", "/server_info") as response:
        version: str = (await response.json(content_type=None))["version"]
    return version.split("/")[1]


async def _accepts(place: Path | int) -> bool:
    """Tell whether somebody listens on a socket, or a port of this machine."""
    try:
        if isinstance(place, Path):
            _, writer = await asyncio.open_unix_connection(place)
        else:
            _, writer = await asyncio.open_connection("127.0.0.1", place)
    except OSError:
        return False
    writer.close()
    return True
