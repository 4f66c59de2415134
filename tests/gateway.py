"""A whole gateway for tests: real Envoy, PostgreSQL and Redis, a stand-in behind."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import uuid4

import httpx

from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.core.allowlist import canonical_pattern
from authz.core.limits import parse_limits
from authz.issuing import issue
from authz.local.envoy import Places, write_config
from authz.local.process import private_directory
from authz.local.stack import (
    free_port,
    listening_port,
    running_authz,
    running_envoy,
    running_standin,
)
from tests import secrecy
from tests.upstream import RawUpstream, raw_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from authz.local.process import Child


Upstream = TypeVar("Upstream")


@dataclass
class Standin:
    """The recorder behind the gateway, reached around Envoy."""

    client: httpx.AsyncClient

    async def received(self) -> list[dict[str, Any]]:
        """Return what it got since the last reset, oldest first."""
        answer = await self.client.get("/_standin/requests")
        return list(answer.json())

    async def behave(self, **behaviour: object) -> None:
        """Tell it how to answer from now on."""
        answer = await self.client.put("/_standin/behaviour", json=behaviour)
        answer.raise_for_status()

    async def reset(self) -> None:
        """Forget what it got and behave again."""
        await self.client.delete("/_standin/behaviour")
        await self.client.delete("/_standin/requests")


@dataclass
class Gateway(Generic[Upstream]):
    """A running gateway and what a test may do to it and see behind it."""

    port: int
    database_url: str
    redis_url: str
    metrics_port: int
    run: Path
    logs: Path
    authz: Child
    envoy: Child
    upstream: Upstream
    settings: Mapping[str, str]

    @property
    def url(self) -> str:
        """Where clients call."""
        return f"http://127.0.0.1:{self.port}"

    async def new_key(
        self,
        models: str = "*",
        *,
        scopes: Sequence[str] = ("inference", "read"),
        expires_at: datetime | None = None,
        limits: str = "",
    ) -> str:
        """Issue a key and return the raw one."""
        patterns = [canonical_pattern(pattern) or "" for pattern in models.split(",")]
        new, raw_key = issue(
            f"key {uuid4().hex}",
            owner="tests",
            models=patterns,
            scopes=scopes,
            expires_at=expires_at,
            limits=parse_limits(limits),
        )
        async with connected(self.database_url) as connection:
            await PostgresKeyWriter(connection).create(new)
        return raw_key

    async def revoke(self, raw_key: str) -> None:
        """Revoke the key that was issued last under this secret."""
        async with connected(self.database_url) as connection:
            keys = PostgresKeyWriter(connection)
            records = [r async for r in keys.list() if raw_key.startswith(r.prefix)]
            await keys.revoke(str(records[-1].id))


@dataclass(frozen=True, slots=True)
class Stores:
    """The real stores behind a gateway, and how authz is set to use them."""

    database_url: str
    redis_url: str
    settings: Mapping[str, str] = field(default_factory=dict)


@asynccontextmanager
async def running_test_gateway(
    stores: Stores,
    upstream: Upstream,
    socket: Path,
    logs: Path,
    edit: Callable[[Path], None] = lambda _directory: None,
) -> AsyncIterator[Gateway[Upstream]]:
    """Run a gateway in front of ``socket`` until the block ends.

    ``edit`` may change Envoy's files before they are read.
    """
    async with AsyncExitStack() as stack:
        run = stack.enter_context(private_directory("authz-test-"))
        metrics_port = free_port()
        settings = {
            "AUTHZ_DATABASE_URL": stores.database_url,
            "AUTHZ_REDIS_URL": stores.redis_url,
            "AUTHZ_CACHE_SECRET": "a secret of the tests, long enough for it",
            "AUTHZ_LISTEN": str(run),
            **stores.settings,
        }
        secrecy.remember(settings)
        metrics = ("127.0.0.1", metrics_port)
        authz = await stack.enter_async_context(
            running_authz(settings, metrics, log=logs / "authz.log")
        )
        anywhere = ("127.0.0.1", 0)
        places = Places(run / "envoy", run, anywhere, anywhere, socket)
        write_config(places)
        edit(places.directory)
        envoy = await stack.enter_async_context(
            running_envoy(places, log=logs / "envoy.log")
        )
        yield Gateway(
            port=await listening_port(places),
            database_url=stores.database_url,
            redis_url=stores.redis_url,
            metrics_port=metrics_port,
            run=run,
            logs=logs,
            authz=authz,
            envoy=envoy,
            upstream=upstream,
            settings=settings,
        )


@asynccontextmanager
async def standin(directory: Path) -> AsyncIterator[tuple[Standin, Path]]:
    """Run the stand-in for Ollama; yields its control and its socket."""
    with private_directory("authz-standin-") as run:
        socket = run / "standin.sock"
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        async with (
            running_standin(socket, log=directory / "standin.log"),
            httpx.AsyncClient(transport=transport, base_url="http://standin") as client,
        ):
            yield Standin(client), socket


@asynccontextmanager
async def own_gateway(
    stores: Stores, logs: Path, edit: Callable[[Path], None] = lambda _directory: None
) -> AsyncIterator[Gateway[RawUpstream]]:
    """Run a gateway for one test alone, before a model server of raw bytes."""
    with private_directory("authz-raw-") as run:
        socket = run / "upstream.sock"
        async with (
            raw_upstream(socket) as upstream,
            running_test_gateway(stores, upstream, socket, logs, edit) as gateway,
        ):
            yield gateway
