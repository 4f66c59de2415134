"""Real stores that fail when told, and replicas of the gateway that use them."""

from __future__ import annotations

import asyncio
import os
import re
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import uuid4

import yaml

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.issuing import issue
from authz.local.postgres import embedded_postgres
from authz.local.redis import embedded_redis
from authz.local.stack import running_authz
from tests.gateway import Stores, own_gateway
from tests.proxy import line_to, line_to_redis
from tests.raw import http1

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from authz.local.process import Child
    from tests.gateway import Gateway
    from tests.proxy import Line
    from tests.raw import Answer
    from tests.upstream import RawUpstream

    Running = AbstractAsyncContextManager[str | None]

POLL_S = 0.02
_BOUND = "envoy.filters.http.local_ratelimit"


@dataclass
class Store:
    """A server that may go and come back; the lines to it stay where they are."""

    begin: Callable[[Callable[[Child], object]], Running]
    url: str = ""
    lines: list[Line] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    run: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        """Start the server and lead all lines to it."""
        self.children.clear()
        url = await self.run.enter_async_context(self.begin(self.children.append))
        assert url is not None, "the tests need embedded stores"
        self.url = url
        for line in self.lines:
            line.target = url

    async def stop(self) -> None:
        """Stop the server in order."""
        await self.run.aclose()

    async def kill(self) -> None:
        """End the server at once."""
        self.children[-1].process.kill()
        await self.stop()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the server."""
        (child,) = self.children
        for pid in [*family(child.process.pid)]:  # before the first one ends
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass
class Site:
    """The stores, and the replicas by what they are set to."""

    postgres: Store
    redis: Store

    async def new_key(self) -> str:
        """Create a key without asking any replica for it."""
        new, raw_key = issue(
            f"key {uuid4().hex}",
            owner="tests",
            models=["*"],
            scopes=["inference", "read"],
            expires_at=None,
        )
        async with connected(self.postgres.url) as connection:
            await PostgresKeyWriter(connection).create(new)
        return raw_key

    async def revoke(self, raw_key: str) -> None:
        """Revoke a key, past every line."""
        async with connected(self.postgres.url) as connection:
            keys = PostgresKeyWriter(connection)
            (key,) = [r async for r in keys.list() if raw_key.startswith(r.prefix)]
            await keys.revoke(str(key.id))


@dataclass
class Replica:
    """A gateway with lines of its own to the stores."""

    gateway: Gateway[RawUpstream]
    to_postgres: Line
    to_redis: Line
    run: AsyncExitStack

    async def ask(self, raw_key: str) -> tuple[Answer, float]:
        """Send one request; return the answer and the seconds it took."""
        body = b'{"model":"llama3.1"}'
        request = (
            b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n"
            b"content-length: %d\r\n\r\n" % (raw_key.encode(), len(body)) + body
        )
        started = time.monotonic()
        answer = await http1(self.gateway.port, request)
        return answer, time.monotonic() - started

    async def status(self, raw_key: str) -> int:
        """Send one request and return the status of the answer."""
        answer, _ = await self.ask(raw_key)
        return answer.status

    async def probe(self, path: str) -> int:
        """Return what a probe is told; 0 if nobody answers."""
        try:
            return (await self._get(path)).status
        except OSError:
            return 0

    async def lookups(self, source: str) -> float:
        """Return how many look-ups were answered from there, or failed there."""
        return await self._sample(f'authz_lookups_total{{source="{source}"}}')

    async def heard(self) -> float:
        """Return how many changes of keys it has been notified of."""
        return await self._sample("authz_invalidation_lag_seconds_count")

    async def listens(self) -> bool:
        """Tell whether it hears of changes, and has forgotten what it saw before."""
        return await self._sample("authz_listening") == 1

    async def _sample(self, name: str) -> float:
        page = (await self._get("/metrics")).body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def start_authz(self) -> None:
        """Start authz once more where it was, and wait until it is ready."""
        where = ("127.0.0.1", self.gateway.metrics_port)
        log = self.gateway.logs / "authz.log"
        self.gateway.authz = await self.run.enter_async_context(
            running_authz(self.gateway.settings, where, log=log)
        )

    async def end_authz(self, number: signal.Signals) -> int:
        """End authz by a signal and return its status."""
        self.gateway.authz.process.send_signal(number)
        return await self.gateway.authz.process.wait()

    async def _get(self, path: str) -> Answer:
        request = f"GET {path} HTTP/1.0\r\n\r\n"
        return await http1(self.gateway.metrics_port, request.encode())


@dataclass
class _PostgresThatKeepsItsPassword:
    directory: Path
    password: str = ""

    @asynccontextmanager
    async def begin(self, started: Callable[[Child], object]) -> AsyncIterator[str]:
        """Run the server; the embedded one would get a new password every time."""
        async with embedded_postgres(self.directory, started=started) as url:
            new = urlsplit(url).password or ""
            self.password = self.password or new
            async with connected(url) as connection:
                await postgres_schema.migrate(connection)
                await connection.execute(f"ALTER ROLE authz PASSWORD '{self.password}'")
            yield url.replace(new, self.password)


@asynccontextmanager
async def running_site(directory: Path) -> AsyncIterator[Site]:
    """Run stores that only these tests use."""
    postgres = _PostgresThatKeepsItsPassword(directory / "postgres")
    site = Site(
        Store(postgres.begin),
        Store(lambda started: embedded_redis(directory / "redis", started=started)),
    )
    await site.postgres.start()
    await site.redis.start()
    try:
        yield site
    finally:
        await site.redis.stop()
        await site.postgres.stop()


@asynccontextmanager
async def replica(site: Site, logs: Path, **settings: str) -> AsyncIterator[Replica]:
    """Run one more gateway on the stores of a site until the block ends."""
    logs.mkdir()
    async with (
        line_to(site.postgres.url) as (to_postgres, database_url),
        line_to_redis(site.redis.url) as (to_redis, redis_url),
        own_gateway(
            Stores(of_two_hosts(database_url), redis_url, settings), logs, unbounded
        ) as gateway,
        AsyncExitStack() as run,
    ):
        site.postgres.lines.append(to_postgres)
        site.redis.lines.append(to_redis)
        yield Replica(gateway, to_postgres, to_redis, run)
        site.postgres.lines.remove(to_postgres)
        site.redis.lines.remove(to_redis)


def unbounded(directory: Path) -> None:
    """Let one address ask as often as it likes, as clients of one test do."""
    file = directory / "listener.yaml"
    config = yaml.safe_load(file.read_text())
    manager = config["resources"][0]["filter_chains"][0]["filters"][-1]["typed_config"]
    (bound,) = (f for f in manager["http_filters"] if f["name"] == _BOUND)
    bound["typed_config"]["filter_enforced"]["default_value"]["numerator"] = 0
    file.write_text(yaml.safe_dump(config))


def of_two_hosts(url: str) -> str:
    """Name the host of a URL twice, of which one that may be written to will do."""
    parts = urlsplit(url)
    query = {name: f"{one},{one}" for name, (one,) in parse_qs(parts.query).items()}
    query["target_session_attrs"] = "read-write"
    return parts._replace(query=urlencode(query)).geturl()


async def until(condition: Callable[[], Awaitable[bool]], within_s: float) -> float:
    """Wait until the condition holds; return the seconds that it took."""
    started = time.monotonic()
    async with asyncio.timeout(within_s):
        while True:
            if await condition():
                return time.monotonic() - started
            await asyncio.sleep(POLL_S)


def family(pid: int) -> Iterable[int]:
    """Return a process and all its descendants."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return
    for child in children:
        yield from family(int(child))
