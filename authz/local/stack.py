"""The parts of a gateway on one machine, for `authz up` and for the tests.

Each part is a context: it is ready inside and stopped after it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from authz.local.envoy import envoy_command
from authz.local.process import running, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from authz.local.envoy import Address, Places
    from authz.local.process import Child

_START_S = 20.0
_DRAIN_S = 10.0
# listener.yaml lets Envoy keep for 0.1 s what it has to tell authz.
_TOLD_S = 0.2
_POLL_S = 0.05
_RUNNING = "/stats?filter=^http.gateway.downstream_rq_active$"
_TIMEOUT = aiohttp.ClientTimeout(total=2)


@asynccontextmanager
async def running_authz(
    settings: Mapping[str, str], metrics: Address, *, log: Path
) -> AsyncIterator[Child]:
    """Run `authz serve` with these settings until the block ends."""
    command = (sys.executable, "-m", "authz", "serve")
    environment = {
        **os.environ,
        **settings,
        "AUTHZ_METRICS_LISTEN": f"{metrics[0]}:{metrics[1]}",
    }
    async with running("authz", command, log=log, env=environment) as child:
        await wait_until_ready(child, lambda: answers(metrics, "/readyz"), _START_S)
        yield child


@asynccontextmanager
async def running_envoy(places: Places, *, log: Path) -> AsyncIterator[Child]:
    """Run Envoy on the files of `write_config` until the block ends."""
    admin = places.run / "admin.sock"
    async with running("envoy", envoy_command(places), log=log) as child:
        await wait_until_ready(child, lambda: answers(admin, "/ready"), _START_S)
        yield child


@asynccontextmanager
async def drained(places: Places) -> AsyncIterator[None]:
    """After the block, let nobody in any more, and what runs end, for a while."""
    try:
        yield
    finally:
        # An Envoy that is gone has nothing to end.
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await _drain(places.run / "admin.sock")


async def _drain(admin: Path) -> None:
    # The first asks connections to close with their next answer.
    for path in ("/healthcheck/fail", "/drain_listeners"):
        async with _asked(admin, "POST", path):
            pass
    while await _number(admin, _RUNNING):  # noqa: ASYNC110 - Envoy tells nobody
        await asyncio.sleep(_POLL_S)
    await asyncio.sleep(_TOLD_S)


async def _number(admin: Path, path: str) -> int:
    async with got(admin, path) as response:
        return int((await response.text()).rpartition(": ")[2] or 0)


@asynccontextmanager
async def running_standin(at: Path, *, log: Path) -> AsyncIterator[Child]:
    """Run the stand-in for Ollama on a unix socket until the block ends."""
    command = (sys.executable, "-m", "authz.local.standin", f"unix:{at}")
    async with running("stand-in", command, log=log) as child:
        await wait_until_ready(child, lambda: answers(at, "/api/version"), _START_S)
        yield child


def url_of(address: Address) -> str:
    """Return the address as clients write it."""
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nothing listens now."""
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


async def answers(place: Address | Path, path: str) -> bool:
    """Tell whether a GET of the path there is answered by 200."""
    try:
        async with got(place, path) as response:
            return response.status == HTTPStatus.OK
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def listening_port(places: Places) -> int:
    """Ask Envoy on which port it listens for clients, where it was given 0."""
    async with got(places.run / "admin.sock", "/listeners?format=json") as response:
        listeners = (await response.json(content_type=None))["listener_statuses"]
    addresses = {
        listener["name"]: listener["local_address"]["socket_address"]
        for listener in listeners
    }
    return int(addresses["gateway"]["port_value"])


async def installed_models(upstream: Address | Path) -> Sequence[str]:
    """Return the names of the models there; none if it does not say."""
    try:
        async with got(upstream, "/api/tags") as response:
            models = (await response.json())["models"]
            return [model["name"] for model in models]
    except (aiohttp.ClientError, OSError, LookupError, TypeError, ValueError):
        return []


@asynccontextmanager
async def got(
    place: Address | Path, path: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """GET a path of a server at an address or on a unix socket."""
    async with _asked(place, "GET", path) as response:
        yield response


@asynccontextmanager
async def _asked(
    place: Address | Path, method: str, path: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    if isinstance(place, Path):
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(str(place))
        url = f"http://localhost{path}"
    else:
        connector = aiohttp.TCPConnector()
        url = f"{url_of(place)}{path}"
    async with (
        aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
        session.request(method, url) as response,
    ):
        yield response
