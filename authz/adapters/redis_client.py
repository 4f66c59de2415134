"""Clients of Redis: one server, Sentinel or Cluster, as the URL says."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import structlog
from redis._parsers import AsyncCommandsParser
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
)

from authz.adapters.tls_files import TlsOptions, why_unusable
from authz.errors import CacheUnavailable, ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from urllib.parse import SplitResult

    Client = Redis | RedisCluster

TIMEOUT_S = 0.05
_TICKS = 5
_START_TIMEOUT_S = 2.0
_MOST_CONNECTIONS = 64
_DEFAULTS: dict[str, Any] = {
    # What was sent may have been done, and counted; nothing is sent twice. (The pool
    # notices connections that have gone since their last use.)
    "retry": Retry(NoBackoff(), 0),
    "socket_timeout": None,  # in_time() bounds all; this would cost a task a write
    "max_connections": _MOST_CONNECTIONS,
}
_TLS = TlsOptions("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_password")
_UNTRUSTED = re.compile(r"certificate verify failed: (.*?)\.? \(_ssl")
# RedisClusterException is none of RedisError.
_ERRORS = (RedisError, RedisClusterException, OSError, TimeoutError)
_PORT, _SENTINEL_PORT = 6379, 26379

log = structlog.get_logger()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what driver and network raise into CacheUnavailable."""
    try:
        yield
    except _ERRORS as error:
        raise CacheUnavailable(type(error).__name__) from error


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """Bound the wait for an answer. Raises TimeoutError.

    How late this process is itself does not count: after every tick it has read what
    has arrived. A busy loop would else take a prompt Redis for a slow one.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as bound:
        ticking: asyncio.TimerHandle

        def tick(left: int) -> None:
            nonlocal ticking
            if left:
                ticking = loop.call_later(seconds / _TICKS, tick, left - 1)
            else:
                bound.reschedule(loop.time())

        ticking = loop.call_later(seconds / _TICKS, tick, _TICKS - 1)
        try:
            yield
        finally:
            ticking.cancel()


@asynccontextmanager
async def redis_client(url: str) -> AsyncIterator[Client]:
    """Yield a client; what does not answer may come later.

    Raises ConfigError for a URL that is none and for what answers but is no Redis
    for us.
    """
    try:
        client = _client(url)
    except (ValueError, TypeError):
        msg = "AUTHZ_REDIS_URL is not a Redis URL"
        raise ConfigError(msg) from None
    try:
        await _try(client)
        yield client
    finally:
        # A server that hangs may not say goodbye in time; nothing hangs on that.
        for one in (client, *_sentinels(client)):
            with suppress(*_ERRORS):
                await one.aclose()


def _client(url: str) -> Client:
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    plain = parts._replace(scheme=scheme)
    if kind == "sentinel":
        return _behind_sentinels(plain)
    if kind == "cluster":
        return _cluster(plain)
    _options(plain)  # looks for the files
    return Redis.from_url(url, **_DEFAULTS)


def _behind_sentinels(parts: SplitResult) -> Redis:
    """Read ``redis+sentinel://user:password@host:26379,host2/service/0``."""
    _, service, *database = parts.path.split("/")
    options = _options(parts._replace(path="/".join(["", *database])))
    login = {
        name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")
    }
    tls = {name: value for name, value in options.items() if name.startswith("ssl")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call] # theirs
        _addresses(parts.netloc, _SENTINEL_PORT),
        # Within our time, the next one must have its turn if the first one hangs.
        sentinel_kwargs={
            "socket_timeout": TIMEOUT_S / 3,
            "retry": Retry(NoBackoff(), 0),
            **login,
            **tls,
        },
        **options,
    )
    if not service:
        msg = "the name of the service is missing"
        raise ValueError(msg)
    master: Redis = sentinel.master_for(service)
    return master


def _sentinels(client: Client) -> list[Redis]:
    """Return the clients that a client behind Sentinel has, and does not close."""
    if isinstance(client, RedisCluster):
        return []
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


def _cluster(parts: SplitResult) -> RedisCluster:
    """Read ``redis+cluster://user:password@host:6379,host2``."""
    nodes = [ClusterNode(*address) for address in _addresses(parts.netloc, _PORT)]
    client = RedisCluster(startup_nodes=nodes, **_options(parts))
    client.commands_parser = _OurCommands()
    return client


class _OurCommands(AsyncCommandsParser):
    """Knows where the key is in what we send: always first.

    The driver would ask the master of the first slot, whenever a node fails, and
    do without the whole cluster when that one is lost.
    """

    async def initialize(self, node: ClusterNode | None = None) -> None:
        """Ask nobody."""

    async def get_keys(self, *args: Any) -> tuple[str, ...]:  # noqa: ANN401 # theirs
        """Return the key of a command that is given with its name."""
        return args[1:2]


def _options(parts: SplitResult) -> dict[str, Any]:
    """Return what a URL of one host says to redis-py, but for the host."""
    one_host = parts._replace(netloc=parts.netloc.split(",")[0])
    options: dict[str, Any] = {**parse_url(urlunsplit(one_host))}
    for name in ("host", "port"):
        options.pop(name, None)
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    reason = why_unusable(options, _TLS)
    if reason is not None:
        msg = f"AUTHZ_REDIS_URL: {reason}"
        raise ConfigError(msg)
    return _DEFAULTS | options


def _addresses(netloc: str, port: int) -> list[tuple[str, int]]:
    hosts = [urlsplit(f"//{host}") for host in netloc.rpartition("@")[2].split(",")]
    addresses = [(host.hostname or "", host.port or port) for host in hosts]
    if not all(name for name, _ in addresses):
        msg = "a host is missing"
        raise ValueError(msg)
    return addresses


async def _try(client: Client) -> None:
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            await client.ping()
    except TypeError:
        msg = "AUTHZ_REDIS_URL has a parameter that does not exist"
        raise ConfigError(msg) from None
    except _ERRORS as error:
        reason = _why_never(error)
        if reason is not None:
            msg = f"AUTHZ_REDIS_URL: {reason}"
            raise ConfigError(msg) from None
        log.warning("cache_unavailable", error=type(error).__name__)


def _why_never(error: Exception) -> str | None:
    """Return why what answers will not do; None if it may yet come."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return "the server refuses the user or password"
    text = str(error)
    untrusted = _UNTRUSTED.search(text)
    if untrusted:
        return f"the certificate of the server is not trusted: {untrusted[1]}"
    if "protocol error" in text.lower():
        return "what answers there is not Redis"
    if "Cluster mode is not enabled" in text:
        return "what answers there is not a Redis Cluster"
    return None
