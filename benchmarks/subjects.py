"""What is measured: each subject is an authorization service behind its own Envoy.

All have the same listener.yaml and the same upstream, so they differ in nothing
but the service.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.adapters.postgres_keys import PostgresKeyWriter
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
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from authz.local.process import Child

_UPSTREAM_CONFIG = Path(__file__).with_name("upstream.yaml")
_START_S = 20.0
# With a star, because a literal name is found by a single look into a set.
_MODELS = ("registry.ollama.ai/library/llama3.*:*",)


@dataclass(frozen=True, slots=True)
class Subjects:
    """What runs: ports by name, the first being what the others are compared with.

    ``workplace`` is private and has the file ``key`` with a key for all of them.
    """

    ports: dict[str, int]
    workplace: Path
    envoy_version: str


@asynccontextmanager
async def running_subjects() -> AsyncIterator[Subjects]:
    """Run all subjects until the block ends. Raises ConfigError, ChildDied."""
    async with AsyncExitStack() as stack:
        workplace = stack.enter_context(private_directory("authz-bench-"))
        start = _Start(stack, workplace)
        await start.upstream()
        ports = {"floor": await start.floor(), "gateway": await start.gateway()}
        yield Subjects(ports, workplace, await start.envoy_version("floor"))


@dataclass(frozen=True, slots=True)
class _Start:
    stack: AsyncExitStack
    workplace: Path

    async def upstream(self) -> None:
        command = (
            str(envoy_binary()),
            *("--config-path", str(_UPSTREAM_CONFIG)),
            *("--concurrency", "1"),
            "--disable-hot-restart",
            *("--log-level", "warning"),
        )
        log = self.workplace / "upstream.log"
        child = await self.child(
            running("upstream", command, log=log, cwd=self.workplace)
        )
        await wait_until_ready(child, lambda: answers(self.socket, "/"), _START_S)

    async def floor(self) -> int:
        run = self.folder("floor")
        socket = run / "authz-0.sock"
        command = (sys.executable, "-m", "benchmarks.floor", str(socket))
        child = await self.child(running("floor", command, log=run / "authz.log"))
        await wait_until_ready(child, lambda: _accepts(socket), _START_S)
        return await self.envoy(run)

    async def gateway(self) -> int:
        run = self.folder("gateway")
        database_url = await self.stack.enter_async_context(
            embedded_postgres(run / "postgres")
        )
        redis_url = await self.stack.enter_async_context(embedded_redis(run / "redis"))
        write_private(self.workplace / "key", await _new_key(database_url))
        settings = {
            "AUTHZ_DATABASE_URL": database_url,
            "AUTHZ_REDIS_URL": redis_url or "",
            "AUTHZ_CACHE_SECRET": secrets.token_hex(32),
            "AUTHZ_LISTEN": str(run),
            "AUTHZ_WORKERS": "1",
        }
        metrics = ("127.0.0.1", free_port())
        await self.child(running_authz(settings, metrics, log=run / "authz.log"))
        return await self.envoy(run)

    async def envoy(self, run: Path) -> int:
        places = Places(
            directory=run / "envoy",
            run=run,
            listen=("127.0.0.1", 0),
            metrics=("127.0.0.1", 0),
            upstream=self.socket,
        )
        write_config(places)
        await self.child(running_envoy(places, log=run / "envoy.log"))
        return await listening_port(places)

    async def envoy_version(self, subject: str) -> str:
        admin = self.workplace / subject / "admin.sock"
        async with got(admin, "/server_info") as response:
            version: str = (await response.json(content_type=None))["version"]
        return version.split("/")[1]

    async def child(self, starting: AbstractAsyncContextManager[Child]) -> Child:
        return await self.stack.enter_async_context(starting)

    @property
    def socket(self) -> Path:
        return self.workplace / "upstream.sock"

    def folder(self, name: str) -> Path:
        folder = self.workplace / name
        folder.mkdir(mode=0o700)
        return folder


async def _new_key(database_url: str) -> str:
    """Create the schema and a key that may do what wrk.lua asks for."""
    new, raw_key = issue(
        "benchmark", models=_MODELS, scopes=[Scope.INFERENCE.value], expires_at=None
    )
    async with connected(database_url) as connection:
        await postgres_schema.migrate(connection)
        await PostgresKeyWriter(connection).create(new)
    return raw_key


async def _accepts(socket: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    return True
