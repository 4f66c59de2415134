"""Redis as its URL says: one server, behind Sentinel, or a Cluster; or not at all."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from authz.adapters import redis_cache
from authz.adapters.redis_cache import RedisKeyCache
from authz.adapters.redis_client import in_time, redis_client
from authz.errors import CacheUnavailable, ConfigError
from authz.local.process import running, wait_until_ready
from authz.local.redis import redis_binary
from authz.local.stack import free_port
from tests.integration.test_redis_cache import LIFETIME, of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FAR_OFF_S = 5.0  # a hundred times the bound: the machine may be busy
ONE, OTHER = bytes(32), bytes([1]) * 32


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_cache, "TIMEOUT_S", FAR_OFF_S)


@asynccontextmanager
async def server(folder: Path, *options: str) -> AsyncIterator[int]:
    """Run a Redis with these options and yield its port."""
    port = _port()
    binary = redis_binary()
    assert binary is not None, "no Redis: neither in a wheel nor on PATH"
    words = (binary, *options, "--port", str(port), "--save", "")
    log = folder / f"{port}.log"
    async with running("redis", words, log=log, cwd=folder) as child:
        await wait_until_ready(child, lambda: _listens(port), 10)
        yield port


def _port() -> int:
    """Return a free port; a Cluster takes the one that is higher by 10,000, too."""
    while (port := free_port()) > 55_535:
        pass
    return port


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def assert_caches(url: str) -> None:
    """Keys of several slots are put, got in one go and dropped."""
    async with redis_client(f"{url}?socket_timeout={FAR_OFF_S}") as client:
        cache = RedisKeyCache(client, b"secret", LIFETIME)
        await cache.put(of(ONE))
        await cache.put(of(OTHER))
        assert await cache.get([bytes([2]) * 32, OTHER, ONE]) == of(OTHER)
        await cache.drop([ONE, OTHER])
        assert await cache.get([ONE, OTHER]) is None


async def test_behind_sentinel_the_master_is_found(tmp_path: Path) -> None:
    async with server(tmp_path) as master:
        configuration = tmp_path / "sentinel.conf"
        configuration.write_text(f"sentinel monitor main 127.0.0.1 {master} 1\n")
        async with server(tmp_path, str(configuration), "--sentinel") as sentinel:
            hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel}"
            await assert_caches(f"redis+sentinel://{hosts}/main/2")


async def test_in_a_cluster_keys_of_all_slots_are_found(tmp_path: Path) -> None:
    async with server(tmp_path, "--cluster-enabled", "yes") as port:
        async with Redis(port=port) as node:
            await node.execute_command("CLUSTER", "ADDSLOTS", *range(16384))  # type: ignore[no-untyped-call] # theirs
            async with asyncio.timeout(10):
                while await _state(node) != "ok":
                    pass
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{port}"
        await assert_caches(f"redis+cluster://{hosts}")


async def _state(node: Redis) -> str:
    info: dict[str, str] = await node.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call] # theirs
    return info["cluster_state"]


async def test_a_redis_that_is_down_is_waited_for(tmp_path: Path) -> None:
    for kind, path in (("", ""), ("+sentinel", "/main"), ("+cluster", "")):
        url = f"redis{kind}://127.0.0.1:{free_port()}{path}"
        async with redis_client(url) as client:
            with pytest.raises(CacheUnavailable):
                await RedisKeyCache(client, b"secret", LIFETIME).get([ONE])
    async with redis_client(f"unix://{tmp_path}/none.sock"):
        pass


@pytest.mark.parametrize("kind", ["", "+cluster"])
async def test_what_is_no_redis_is_refused_in_one_line(kind: str) -> None:
    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match=r"^AUTHZ_REDIS_URL: .* is not Redis$"):
            async with redis_client(f"redis{kind}://127.0.0.1:{port}"):
                pass


async def test_a_redis_that_will_never_do_is_refused(tmp_path: Path) -> None:
    async with server(tmp_path, "--requirepass", "right") as port:
        for url, reason in (
            (f"redis://:wrong@127.0.0.1:{port}", "refuses the user or password"),
            (f"redis+cluster://:right@127.0.0.1:{port}", "not a Redis Cluster"),
        ):
            with pytest.raises(ConfigError, match=f"^AUTHZ_REDIS_URL: .*{reason}$"):
                async with redis_client(url):
                    pass
        await assert_caches(f"redis://:right@127.0.0.1:{port}/3")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:x",
        "redis://h?nothing=1",
        "redis+sentinel://h",
        "redis+sentinel://h/main?nothing=1",
        "redis+cluster://",
        "redis+cluster://h,,h",
        "redis+cluster://h?nothing=1",
        "rediss://h?ssl_ca_certs=/none",
        "rediss+cluster://h?ssl_certfile=/none",
    ],
)
async def test_a_url_that_is_none_names_its_variable(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^AUTHZ_REDIS_URL"):
        async with redis_client(url):
            pass


async def test_an_answer_that_has_come_is_no_timeout_of_a_busy_process() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    async with in_time(0.01):
        theirs.send(b"+PONG\r\n")
        time.sleep(0.1)  # noqa: ASYNC251 - other work that holds up everything
        assert await reader.readline() == b"+PONG\r\n"
    writer.close()
    theirs.close()


async def test_an_answer_that_does_not_come_is_waited_for_in_bounds() -> None:
    with pytest.raises(TimeoutError):
        async with in_time(0.01), asyncio.timeout(FAR_OFF_S):
            await asyncio.Event().wait()
