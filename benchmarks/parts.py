"""The programs of a run, each started on its own and stopped with the run.

What is measured against what is for subjects.py to say.
"""

from __future__ import annotations

import asyncio
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
from authz.core.model import Scope
from authz.issuing import issue
from authz.local.data_dir import write_private
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from authz.local.envoy import Address
    from authz.local.process import Child

    # Takes a part of Envoy's configuration and changes it.
    Change = Callable[[dict[str, Any]], None]

_UPSTREAM_CONFIG = Path(__file__).with_name("upstream.yaml")
_SOCKET = "authz-0.sock"
_START_S = 20.0
# With a star, because a literal name is found by a single look into a set.
_MODELS = ("registry.ollama.ai/library/llama3.*:*",)


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

    ``workplace`` is private; `gateway` puts the file ``key`` there.
    """

    stack: AsyncExitStack
    workplace: Path

    @property
    def upstream(self) -> Path:
        """The socket of the server that stands behind every Envoy."""
        return self.workplace / "upstream.sock"

    async def constant_upstream(self) -> None:
        """Run the server of upstream.yaml."""
        command = (
            str(envoy_binary()),
            *("--config-path", str(_UPSTREAM_CONFIG)),
            *("--concurrency", "1"),
            "--disable-hot-restart",
            *("--log-level", "warning"),
        )
        log = self.workplace / "upstream.log"
        child = await self._child(
            running("upstream", command, log=log, cwd=self.workplace)
        )
        await wait_until_ready(child, lambda: answers(self.upstream, "/"), _START_S)

    async def floor(self) -> Path:
        """Run the service that allows everything; return its socket."""
        run = self._folder("floor-service")
        socket = run / _SOCKET
        command = (sys.executable, "-m", "benchmarks.floor", str(socket))
        child = await self._child(running("floor", command, log=run / "authz.log"))
        await wait_until_ready(child, lambda: _accepts(socket), _START_S)
        return socket

    async def gateway(self) -> Path:
        """Run `authz serve` with its stores and one key; return its socket."""
        service = await self.service()
        write_private(self.workplace / "key", await _new_key(service.database_url))
        return service.socket

    async def service(self) -> Service:
        """Run `authz serve` with its stores, which are empty."""
        run = self._folder("gateway-service")
        children: list[Child] = []
        database_url = await self.stack.enter_async_context(
            embedded_postgres(run / "postgres", started=children.append)
        )
        redis_url = await self.stack.enter_async_context(
            embedded_redis(run / "redis", started=children.append)
        )
        async with connected(database_url) as connection:
            await postgres_schema.migrate(connection)
        settings = {
            "AUTHZ_DATABASE_URL": database_url,
            "AUTHZ_REDIS_URL": redis_url or "",
            "AUTHZ_CACHE_SECRET": secrets.token_hex(32),
            "AUTHZ_LISTEN": str(run),
            "AUTHZ_WORKERS": "1",
        }
        metrics = ("127.0.0.1", free_port())
        starting = running_authz(settings, metrics, log=run / "authz.log")
        children.append(await self._child(starting))
        pids = {child.name: child.process.pid for child in children}
        return Service(run / _SOCKET, metrics, database_url, redis_url, pids)

    async def envoy(
        self,
        name: str,
        service: Path,
        change: Change | None = None,
        model_server: Change | None = None,
    ) -> Proxy:
        """Run an Envoy that asks the service.

        ``change`` and ``model_server`` may change its listener, and its cluster of
        that name.
        """
        run = self._folder(name)
        (run / _SOCKET).symlink_to(service)
        places = Places(
            directory=run / "envoy",
            run=run,
            listen=("127.0.0.1", 0),
            metrics=("127.0.0.1", 0),
            upstream=self.upstream,
        )
        write_config(places)
        if change:
            _rewrite(places.directory / "listener.yaml", "gateway", change)
        if model_server:
            _rewrite(places.directory / "clusters.yaml", "ollama", model_server)
        child = await self._child(running_envoy(places, log=run / "envoy.log"))
        return Proxy(
            await listening_port(places), child.process.pid, await _version(run), run
        )

    async def _child(self, part: AbstractAsyncContextManager[Child]) -> Child:
        return await self.stack.enter_async_context(part)

    def _folder(self, name: str) -> Path:
        folder = self.workplace / name
        folder.mkdir(mode=0o700)
        return folder


def _rewrite(path: Path, name: str, change: Change) -> None:
    config = yaml.safe_load(path.read_text())
    change(next(part for part in config["resources"] if part["name"] == name))
    path.write_text(yaml.safe_dump(config, sort_keys=False))


async def _new_key(database_url: str) -> str:
    """Create a key that may do what the loads ask for."""
    new, raw_key = issue(
        "benchmark", models=_MODELS, scopes=[Scope.INFERENCE.value], expires_at=None
    )
    async with connected(database_url) as connection:
        await PostgresKeyWriter(connection).create(new)
    return raw_key


async def _version(run: Path) -> str:
    async with got(run / "admin.sock", "/server_info") as response:
        version: str = (await response.json(content_type=None))["version"]
    return version.split("/")[1]


async def _accepts(socket: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    return True
