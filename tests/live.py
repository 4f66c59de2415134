"""Files of a running Envoy, changed as people and Kubernetes change them."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import httpx
import yaml

from authz.adapters.postgres import connected
from authz.cli.envoy_files import observations
from authz.cli.observation import State
from authz.local.stack import got
from tests.failing import until
from tests.manifests import ROOT
from tests.upstream import OK, chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from ssl import SSLContext

    from authz.cli.observation import Observation
    from tests.gateway import Gateway
    from tests.upstream import RawUpstream

WITHIN_S = 20.0
CHAT = {"model": "llama3.1"}
# What Envoy calls the subscriptions of these files in its statistics.
SUBSCRIPTIONS = {
    "listener.yaml": "listener_manager.lds",
    "routes.yaml": "http.gateway.rds.gateway",
    "clusters.yaml": "cluster_manager.cds",
    "tls.yaml": "sds.gateway",
}
_COUNTED = """
SELECT sum(requests) FROM usage JOIN secrets USING (key_id)
 WHERE starts_with($1, prefix)
"""
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
)


def mount(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Lay out a ConfigMap or a Secret, or a newer state of it, as the kubelet does.

    That is: all states at once, and the names of new files after that.
    """
    state = Path(mkdtemp(prefix="..", dir=folder))
    for name, text in files.items():
        (state / name).write_bytes(text.encode() if isinstance(text, str) else text)
    (folder / "..data_tmp").symlink_to(state.name)
    (folder / "..data_tmp").rename(folder / "..data")
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(f"..data/{name}")


def put(file: Path, text: str | bytes) -> None:
    """Move a file into place."""
    new = file.parent.with_name(f"{file.name}.new")
    new.write_bytes(text.encode() if isinstance(text, str) else text)
    new.rename(file)


def tls_socket(directory: Path) -> dict[str, object]:
    """Return the TLS of listener.yaml, without the sign of a comment before it."""
    before, start, rest = (
        (ROOT / "envoy/listener.yaml")
        .read_text()
        .partition("    # transport_socket:\n")
    )
    block, end, after = rest.partition("    filters:\n")
    text = before + (start + block).replace("    # ", "    ") + end + after
    listener = yaml.safe_load(text.replace("/etc/envoy", str(directory)))
    return dict(listener["resources"][0]["filter_chains"][0]["transport_socket"])


async def listens(port: int) -> bool:
    """Tell whether somebody takes connections there."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def stats(run: Path, only: str) -> dict[str, int]:
    """Return Envoy's counters and gauges whose names have the expression in them."""
    async with got(run / "admin.sock", f"/stats?filter={only}") as response:
        lines = (line.partition(": ") for line in (await response.text()).splitlines())
    return {name: int(value) for name, _, value in lines if value.isdecimal()}


@dataclass
class Live:
    """A gateway whose files are changed while it runs."""

    gateway: Gateway[RawUpstream]
    key: str
    tls: SSLContext | None = None

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.gateway.run / "envoy"

    def text(self, name: str) -> str:
        """Return what stands in a file."""
        return (self.folder / name).read_text()

    def edited(self, name: str, old: str, new: str) -> str:
        """Return what a file is to be; ``old`` stands there once."""
        changed, found = re.subn(old, new, self.text(name))
        assert found == 1, (old, found)
        return changed

    def put(self, **files: str) -> None:
        """Put files in place, by their names less `.yaml`, as that is done there."""
        named = {f"{name}.yaml": text for name, text in files.items()}
        if (self.folder / "..data").is_symlink():
            here = {
                file.name: file.read_text()
                for file in self.folder.iterdir()
                if not file.name.startswith("..")
            }
            mount(self.folder, here | named)
        else:
            for name, text in named.items():
                put(self.folder / name, text)

    async def count(self, name: str, what: str) -> int:
        """Return a counter of the subscription of a file."""
        full = f"{SUBSCRIPTIONS[name]}.update_{what}"
        return (await stats(self.gateway.run, f"^{re.escape(full)}$"))[full]

    async def refused(self, name: str) -> int:
        """Tell how often Envoy refused a state of a file, in whatever way."""
        return await self.count(name, "rejected") + await self.count(name, "failure")

    async def ask(self, body: bytes = b'{"model":"llama3.1"}') -> httpx.Response:
        """Ask for an answer, on a connection of its own."""
        async with self.client() as client:
            return await client.post("/api/chat", content=body, headers=self.bearer)

    async def healthz(self) -> str:
        """Ask for what stands in routes.yaml itself."""
        async with self.client() as client:
            return (await client.get("/healthz")).text

    def client(self, *, http2: bool = False) -> httpx.AsyncClient:
        """Return a client that has no connection yet."""
        scheme = "https" if self.tls else "http"
        return httpx.AsyncClient(
            base_url=f"{scheme}://127.0.0.1:{self.gateway.port}",
            verify=self.tls or False,
            http1=not http2,
            http2=http2,
            timeout=30,
        )

    @property
    def bearer(self) -> Mapping[str, str]:
        """The header with the key."""
        return {"authorization": f"Bearer {self.key}"}

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        """Keep streams running; after the block they come to their last line."""
        go_on = asyncio.Event()
        upstream = self.gateway.upstream
        upstream.script = (
            _HEAD,
            chunk(b"first\n"),
            go_on,
            chunk(b"last\n"),
            b"0\r\n\r\n",
        )
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(self._stream(http2=http2))
                for http2 in (False, True)
            ]
            upstream.script = OK
            yield
            go_on.set()
            for lines in streams:
                assert [line async for line in lines] == ["last"]

    @asynccontextmanager
    async def _stream(self, *, http2: bool) -> AsyncIterator[AsyncIterator[str]]:
        client = self.client(http2=http2)
        request = client.stream("POST", "/api/chat", json=CHAT, headers=self.bearer)
        async with client, request as response:
            lines = response.aiter_lines()
            assert (response.status_code, await anext(lines)) == (200, "first")
            yield lines

    async def until_refused(self, name: str, before: int) -> None:
        """Wait until Envoy has refused a state of a file."""

        async def refused() -> bool:
            return await self.refused(name) > before

        await until(refused, WITHIN_S)

    async def until_taken(self, name: str, before: int) -> None:
        """Wait until Envoy has taken a state of a file."""

        async def taken() -> bool:
            return await self.count(name, "success") > before

        await until(taken, WITHIN_S)

    async def said(self) -> Observation:
        """Return the one line of `authz healthcheck --deep` for Envoy's files."""
        (found,) = await observations(self.gateway.run / "admin.sock")
        return found

    async def served(self) -> str:
        """Return the state that this line has."""
        return (await self.said()).state

    async def until_served(self) -> None:
        """Wait until this is ok, and do as the line says: move any file in."""

        async def well() -> bool:
            put(self.folder / ".again", "")
            return await self.served() == State.OK

        await until(well, WITHIN_S)

    async def until_counted(self, requests: int) -> None:
        """Wait until so many requests are in the usage of the key, and no more."""

        async def counted() -> bool:
            async with connected(self.gateway.database_url) as connection:
                found = await connection.fetchval(_COUNTED, self.key)
            assert (found or 0) <= requests
            return bool(found == requests)

        await until(counted, WITHIN_S)
