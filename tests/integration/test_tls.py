"""TLS to both stores: what has the right certificate is used, nothing else is told."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import pytest

from authz.adapters import redis_cache
from authz.adapters.postgres import connected
from authz.adapters.postgres_changes import follow_changes
from authz.adapters.redis_cache import RedisKeyCache
from authz.adapters.redis_client import redis_client
from authz.errors import ConfigError, StoreUnavailable
from tests import programs
from tests.certificates import Authority, new_authority
from tests.failing import until
from tests.gateway import Stores, own_gateway
from tests.integration.test_postgres_faults import Listener
from tests.integration.test_redis_cache import LIFETIME, of
from tests.proxy import Line
from tests.raw import http1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.gateway import Gateway
    from tests.upstream import RawUpstream

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HOST = "127.0.0.1"
FAR_OFF_S = 5.0  # a hundred times the bound: the machine may be busy
DIGEST = bytes(32)
SSL_REQUEST = bytes.fromhex("0000000804d2162f")
HANDSHAKE = b"\x16\x03"


@dataclass
class Hosts:
    """Certificates: of the authority that the service trusts, and others."""

    folder: Path
    trusted: Authority = field(init=False)
    foreign: Authority = field(init=False)

    def __post_init__(self) -> None:
        self.trusted = new_authority(self.folder, "trusted")
        self.foreign = new_authority(self.folder, "foreign")

    def context(self, name: str = HOST, by: Authority | None = None) -> ssl.SSLContext:
        """Return how a server speaks TLS under that name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(by or self.trusted).issue(self.folder, name))
        return context

    def demanding(self) -> ssl.SSLContext:
        """Return how a server speaks TLS with clients of the trusted authority."""
        context = self.context()
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.trusted.root)
        return context

    def impostors(self) -> list[ssl.SSLContext]:
        """Return how those speak TLS who are not the host that is asked for."""
        return [self.context(by=self.foreign), self.context("elsewhere")]


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_cache, "TIMEOUT_S", FAR_OFF_S)


@dataclass
class Postgres:
    """What stands before a PostgreSQL and speaks TLS; the embedded one does not."""

    database_url: str
    context: ssl.SSLContext
    line: Line = field(init=False)
    url: str = ""
    refused: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.line = Line(self.database_url)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert await reader.readexactly(8) == SSL_REQUEST
        writer.write(b"S")
        try:
            await writer.start_tls(self.context)
        except OSError:
            self.refused.set()
            return writer.close()
        return await self.line.serve(reader, writer)


@asynccontextmanager
async def postgres(
    database_url: str, context: ssl.SSLContext, root: Path
) -> AsyncIterator[Postgres]:
    """Run one that speaks TLS; its URL demands the root."""
    server = Postgres(database_url, context)
    async with listening(server.serve) as port:
        server.url = postgres_url(database_url, port, root)
        yield server
        server.line.close()


def postgres_url(database_url: str, port: int, root: Path) -> str:
    parts = urlsplit(database_url)
    user = parts.netloc.rpartition("@")[0]
    query = f"sslmode=verify-full&sslrootcert={quote(str(root))}"
    return parts._replace(netloc=f"{user}@{HOST}:{port}", query=query).geturl()


@asynccontextmanager
async def redis(
    redis_url: str, context: ssl.SSLContext, root: Path
) -> AsyncIterator[tuple[Line, str]]:
    """Run a Redis that speaks TLS; its URL demands the root."""
    line = Line(redis_url)
    async with listening(line.serve, context) as port:
        yield line, f"rediss://{HOST}:{port}?ssl_ca_certs={quote(str(root))}"
        line.close()


@asynccontextmanager
async def listening(
    serve: Serve, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, HOST, 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def status(gateway: Gateway[RawUpstream], raw_key: str) -> int:
    body = b'{"model":"llama3.1"}'
    request = (
        b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n" % (raw_key.encode(), len(body)) + body
    )
    return (await http1(gateway.port, request)).status


async def test_keys_work_and_end_where_both_stores_demand_certificates(
    hosts: Hosts, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    certificate, key = hosts.trusted.issue(tmp_path, "authz")
    context, root = hosts.demanding(), hosts.trusted.root
    async with (
        postgres(database_url, context, root) as store,
        redis(redis_url, context, root) as (to_redis, cache),
    ):
        stores = Stores(
            f"{store.url}&sslcert={certificate}&sslkey={key}",
            f"{cache}&ssl_certfile={certificate}&ssl_keyfile={key}",
        )
        async with own_gateway(stores, tmp_path) as gateway:
            raw_key = await gateway.new_key()
            assert await status(gateway, raw_key) == 200
            assert to_redis.ends
            await gateway.revoke(raw_key)

            async def is_refused() -> bool:
                return await status(gateway, raw_key) == 401

            await until(is_refused, FAR_OFF_S)
        assert "unavailable" not in (tmp_path / "authz.log").read_text()


async def test_a_store_that_demands_a_certificate_is_not_used_without(
    hosts: Hosts, database_url: str, redis_url: str
) -> None:
    context, root = hosts.demanding(), hosts.trusted.root
    async with postgres(database_url, context, root) as store:
        with pytest.raises(StoreUnavailable):
            async with connected(store.url):
                pass
    async with redis(redis_url, context, root) as (line, url):
        async with redis_client(url):
            pass
        assert not line.ends


async def test_an_impostor_of_postgresql_gets_no_password(
    hosts: Hosts, database_url: str
) -> None:
    for context in hosts.impostors():
        async with postgres(database_url, context, hosts.trusted.root) as impostor:
            with pytest.raises(StoreUnavailable):
                async with connected(impostor.url):
                    pass
            assert not impostor.line.ends


async def test_an_impostor_of_redis_gets_no_password(
    hosts: Hosts, redis_url: str
) -> None:
    for context in hosts.impostors():
        async with redis(redis_url, context, hosts.trusted.root) as (impostor, url):
            with pytest.raises(ConfigError, match="certificate of the server"):
                async with redis_client(url.replace("//", "//u:hunter2@")):
                    pass
            assert not impostor.ends


async def test_nothing_is_said_in_clear_text_to_what_speaks_no_tls(
    hosts: Hosts, database_url: str
) -> None:
    heard: list[bytes] = []

    async def refuse(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        heard.append(await reader.read(8))
        writer.write(b"N")
        heard.append(await reader.read())
        writer.close()

    async with listening(refuse) as port:
        with pytest.raises(StoreUnavailable):
            async with connected(postgres_url(database_url, port, hosts.trusted.root)):
                pass
        await until(lambda: _is(heard, [SSL_REQUEST, b""]), FAR_OFF_S)
        heard.clear()
        async with redis_client(f"rediss://u:hunter2@{HOST}:{port}"):
            pass
    said = b"".join(heard)
    assert said.startswith(HANDSHAKE)
    assert b"hunter2" not in said


async def _is(one: list[bytes], other: list[bytes]) -> bool:
    return one == other


async def test_through_tls_redis_keeps_what_it_is_given(
    hosts: Hosts, redis_url: str
) -> None:
    async with (
        redis(redis_url, hosts.context(), hosts.trusted.root) as (_, url),
        redis_client(f"{url}&socket_timeout={FAR_OFF_S}") as client,
    ):
        cache = RedisKeyCache(client, b"secret", LIFETIME)
        await cache.put(of(DIGEST))
        assert await cache.get([DIGEST]) == of(DIGEST)
        await cache.drop([DIGEST])


async def test_the_service_does_not_start_with_an_impostor(
    hosts: Hosts, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    context, root = hosts.context(by=hosts.foreign), hosts.trusted.root
    async with (
        postgres(database_url, context, root) as store,
        redis(redis_url, context, root) as (_, cache),
        listening(_no_tls) as port,
    ):
        none = postgres_url(database_url, port, root)
        for name, reason, urls in (
            ("AUTHZ_DATABASE_URL", "is not trusted: ", (store.url, "")),
            ("AUTHZ_DATABASE_URL", "does not speak TLS", (none, "")),
            ("AUTHZ_REDIS_URL", "is not trusted: ", (database_url, cache)),
        ):
            settings = {
                "AUTHZ_DATABASE_URL": urls[0],
                "AUTHZ_REDIS_URL": urls[1],
                "AUTHZ_CACHE_SECRET": "s" * 32,
                "AUTHZ_LISTEN": str(tmp_path),
                "AUTHZ_METRICS_LISTEN": f"{HOST}:0",
            }
            ended = await programs.authz("serve", cwd=tmp_path, env=settings)
            assert ended.status == 2, ended
            (line,) = ended.err.splitlines()
            assert line.startswith(f"authz: {name}: ")
            assert reason in line


async def _no_tls(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"N")
    writer.close()


async def test_a_certificate_that_ends_while_the_service_runs_is_waited_for(
    hosts: Hosts, database_url: str
) -> None:
    listener = Listener()
    good, root = hosts.context(), hosts.trusted.root
    async with postgres(database_url, good, root) as store:
        following = asyncio.create_task(follow_changes(store.url, listener))
        assert await listener.next() == "listening"
        store.context = hosts.context(by=hosts.foreign)
        store.line.close()
        assert await listener.next() == "deaf"
        await asyncio.wait_for(store.refused.wait(), FAR_OFF_S)
        store.context = good
        assert await listener.next() == "listening"
        following.cancel()
        await asyncio.wait({following})
