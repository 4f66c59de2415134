"""What is measured against what: a gateway each, with one request for all of them.

Subjects of one measure differ in one thing only, and share all the rest. For scale
there are others, which share the request, the model server and the machine.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from authz.adapters.postgres import connected
from authz.core.credential import Peppers
from authz.issuing import issue_secret
from authz.local.data_dir import write_private
from authz.local.stack import free_port
from benchmarks import many_keys
from benchmarks.listeners import at, native_keys, router_alone, unbounded
from benchmarks.parts import new_key, starting
from benchmarks.peers import litellm, plain_gateway
from benchmarks.wrk import Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from authz.local.envoy import Address
    from benchmarks.parts import Change, Parts, Stores

ENVOY_ALONE = "Envoy alone"
NATIVE_KEYS = "Envoy's api_key_auth"
FLOOR = "floor"
WARM = "gateway, warm key"
RATES = "gateway, rpm and tpm"
LIMITS = "gateway, limits"
COLD = "gateway, cold key"
TWO_WORKERS = "gateway, 2 workers"
PLAIN = "FastAPI + httpx"
LITELLM = "LiteLLM"

PATH = "/v1/chat/completions"
BODY = (
    b'{"model":"llama3.1","stream":false,'
    b'"messages":[{"role":"system","content":"You are a helpful assistant."},'
    b'{"role":"user","content":"Hello, how are you?"}]}'
)
# None of them is reached.
_RATES = "rpm=100000000,tpm=100000000000"
_LIMITS = f"{_RATES},concurrency=1000,budget=100000000000/day"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked, its processes by name, and how long a sample must last."""

    target: Target
    pids: Mapping[str, int]
    least_seconds: int = 1


@dataclass(frozen=True, slots=True)
class Site:
    """What all subjects share, and how each is built on it.

    ``cold_keys`` is how many keys there are that are asked with once.
    """

    parts: Parts
    upstream: int
    stores: Stores
    key: str
    cold_keys: int

    async def envoy_alone(self) -> Subject:
        """Build a proxy that asks nobody."""
        return await self._behind_envoy(ENVOY_ALONE, {}, change=router_alone)

    async def native_keys(self) -> Subject:
        """Build a proxy with a list of one key."""
        return await self._behind_envoy(NATIVE_KEYS, {}, change=native_keys(self.key))

    async def floor(self) -> Subject:
        """Build a gateway that allows everything, unread."""
        socket, pid = await self.parts.floor()
        return await self._behind_envoy(FLOOR, {"service": pid}, socket)

    async def warm(self) -> Subject:
        """Build the gateway for a key that it knows."""
        return await self._gateway(WARM)

    async def rates(self) -> Subject:
        """Build the gateway for a key with limits of requests and tokens a minute."""
        key = await new_key(self.stores.database_url, limits=_RATES)
        return await self._gateway(RATES, keys=key)

    async def limits(self) -> Subject:
        """Build the gateway for a key with every limit."""
        key = await new_key(self.stores.database_url, limits=_LIMITS)
        return await self._gateway(LIMITS, keys=key)

    async def cold(self) -> Subject:
        """Build the gateway for keys that it has never seen."""
        issued = [issue_secret(Peppers()) for _ in range(self.cold_keys)]
        digests = [(n, secret.digest) for n, (secret, _) in enumerate(issued, 1)]
        async with connected(self.stores.database_url) as connection:
            await many_keys.prepare(connection, digests)
            await many_keys.add(connection, 1, self.cold_keys)
        return await self._gateway(COLD, keys="\n".join(raw for _, raw in issued))

    async def two_workers(self) -> Subject:
        """Build the gateway with two processes."""
        return await self._gateway(TWO_WORKERS, workers=2)

    async def plain(self) -> Subject:
        """Build the gateway of peers/plain_gateway.py."""
        digest = sha256(self.key.encode()).digest()
        async with connected(self.stores.database_url) as connection:
            await connection.execute(plain_gateway.SCHEMA)
            await connection.execute(_PLAIN_KEY, digest, ["llama3*"])
        port = free_port()
        module = "benchmarks.peers.plain_gateway"
        pid = await self.parts.web_server(
            "plain",
            port,
            (sys.executable, "-m", module, str(port)),
            {
                **os.environ,
                "DATABASE_URL": self.stores.database_url,
                "UPSTREAM": f"http://127.0.0.1:{self.upstream}",
            },
        )
        # Without the stores': its key is in memory, and they work for others, too.
        return Subject(self._target(PLAIN, port, self.key), {"service": pid})

    async def litellm(self) -> Subject:
        """Build LiteLLM's proxy, with its master key."""
        port, key = free_port(), f"sk-{secrets.token_hex(16)}"
        config = self.parts.workplace / "litellm.yaml"
        litellm.write_config(config, self.upstream)
        pid = await self.parts.web_server(
            "litellm",
            port,
            litellm.command(config, port),
            litellm.environment(self.parts.workplace, key),
        )
        # With all connections in use, it needs about a second for an answer.
        target = self._target(LITELLM, port, key)
        return Subject(target, {"service": pid}, least_seconds=5)

    async def behind_listener(self, name: str, address: Address) -> Subject:
        """Build a gateway of somebody else's service, which runs already."""
        return await self._behind_envoy(f"peer {name}", {}, address)

    async def _gateway(self, name: str, keys: str = "", workers: int = 1) -> Subject:
        folder = f"{name}-service"
        service = await self.parts.authz(folder, self.stores, workers)
        pids = {"service": service.pids["authz"], **self.stores.pids}
        return await self._behind_envoy(
            name, pids, service.socket, keys=keys, workers=workers
        )

    async def _behind_envoy(
        self,
        name: str,
        pids: Mapping[str, int],
        service: Path | Address | None = None,
        *,
        change: Change = unbounded,
        keys: str = "",
        workers: int = 1,
    ) -> Subject:
        proxy = await self.parts.envoy(
            name,
            service or self.parts.workplace / "nobody.sock",
            change,
            at("127.0.0.1", self.upstream),
            workers,
        )
        target = self._target(name, proxy.port, keys or self.key)
        return Subject(target, {"envoy": proxy.pid, **pids})

    def _target(self, name: str, port: int, keys: str) -> Target:
        folder = self.parts.folder(f"{name}-client")
        write_private(folder / "keys", f"{keys}\n")
        (folder / "body").write_bytes(BODY)
        return Target(port, folder, PATH)


_PLAIN_KEY = "INSERT INTO plain_keys (digest, models) VALUES ($1, $2)"
_BUILDERS: Mapping[str, Callable[[Site], Awaitable[Subject]]] = {
    ENVOY_ALONE: Site.envoy_alone,
    NATIVE_KEYS: Site.native_keys,
    FLOOR: Site.floor,
    WARM: Site.warm,
    RATES: Site.rates,
    LIMITS: Site.limits,
    COLD: Site.cold,
    TWO_WORKERS: Site.two_workers,
    PLAIN: Site.plain,
    LITELLM: Site.litellm,
}
ALL = tuple(_BUILDERS)


@asynccontextmanager
async def site(cold_keys: int = 0) -> AsyncIterator[Site]:
    """Run what all subjects share until the block ends.

    Raises ConfigError, ChildDied.
    """
    async with starting() as parts:
        upstream = await parts.constant_upstream()
        stores = await parts.stores()
        key = await new_key(stores.database_url)
        yield Site(parts, upstream, stores, key, cold_keys)


async def build(site: Site, name: str) -> Subject:
    """Run one of ALL. Raises ConfigError, ChildDied."""
    return await _BUILDERS[name](site)
