"""`authz up`: from nothing to a first answer, and away without a trace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from dotenv import dotenv_values

from authz.local.stack import free_port
from tests.acceptance.test_auth_flow import CHAT, bearer
from tests.failing import until
from tests.programs import authz, start
from tests.upstream import RawUpstream, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

READY_WITHIN_S = 60


class Up:
    """A running `authz up` and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []

    async def ready(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_WITHIN_S):
            async for line in self.process.stdout:
                self.lines.append(line.decode().rstrip("\n"))
                if self.lines[-1] == f"ready {self.url}":
                    return
        pytest.fail(f"it ended: {self.lines}")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        await asyncio.wait_for(self.process.communicate(), READY_WITHIN_S)
        assert self.process.returncode is not None
        return self.process.returncode

    def descendants(self) -> dict[str, int]:
        """Return the children by the name of their program."""
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return {
            Path(f"/proc/{pid}/comm").read_text().strip(): int(pid)
            for pid in pids.read_text().split()
        }


@asynccontextmanager
async def up(
    folder: Path, *words: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[Up]:
    port = free_port()
    listen = ("--listen", f"127.0.0.1:{port}")
    running = Up(await start("up", *listen, *words, cwd=folder, env=env), port)
    try:
        await running.ready()
        yield running
    finally:
        if running.process.returncode is None:
            await running.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the run that some tests share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
async def running(folder: Path) -> AsyncIterator[Up]:
    async with up(folder) as running:
        yield running


async def ask(url: str, key: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.post(f"{url}/api/chat", json=CHAT, headers=bearer(key))


async def test_the_first_run_makes_a_key_that_later_runs_keep(tmp_path: Path) -> None:
    data_dir = tmp_path / ".authz"
    async with up(tmp_path) as first:
        key = (data_dir / "demo.key").read_text().strip()
        assert any(key in line and "curl" in line for line in first.lines)
        assert (await ask(first.url, key)).status_code == 200
        assert await first.stop() == 0
    async with up(tmp_path) as second:
        assert not any(key in line for line in second.lines)
        assert any(str(data_dir / "demo.key") in line for line in second.lines)
        assert (await ask(second.url, key)).status_code == 200
        assert await second.stop(signal.SIGINT) == 0


async def test_other_commands_work_in_the_same_folder(
    folder: Path, running: Up
) -> None:
    options = ("--name", "second", "--models", "llama3.1", "--json")
    created = await authz("keys", "create", *options, cwd=folder)
    assert "database:" in created.err
    assert (await ask(running.url, json.loads(created.out)["key"])).is_success
    revoked = await authz("keys", "revoke", "second", cwd=folder)
    assert revoked.status == 0


async def test_what_it_writes_is_private(folder: Path, running: Up) -> None:
    data_dir = folder / ".authz"
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    for name in ("env", "demo.key", "cache-secret"):
        assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600
    env = (data_dir / "env").read_text()
    password = env.partition("://authz:")[2].partition("@")[0]
    assert password
    for pid in running.descendants().values():
        assert password not in Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.usefixtures("running")
async def test_a_second_run_on_the_same_folder_is_refused(folder: Path) -> None:
    listen = ("--listen", f"127.0.0.1:{free_port()}")
    ended = await authz("up", *listen, cwd=folder)
    assert ended.status == 2
    assert "another authz up runs in" in ended.err


async def test_what_runs_may_end_while_nobody_new_is_let_in(
    tmp_path: Path, database_url: str
) -> None:
    upstream, end = RawUpstream(), asyncio.Event()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    words = ("--upstream", f"http://127.0.0.1:{port}")
    async with server, up(tmp_path, *words, env=own(database_url)) as running:
        key = (tmp_path / ".authz" / "demo.key").read_text().strip()
        head, first, *rest = stream("application/x-ndjson", [b"{}\n", b"{}\n"])
        upstream.script = (head, first, end, *rest)
        answer = asyncio.create_task(ask(running.url, key))
        await until(lambda: _has_asked(upstream), READY_WITHIN_S)
        stopping = asyncio.create_task(running.stop())
        await until(lambda: _lets_nobody_in(running.url), READY_WITHIN_S)
        end.set()
        assert (await answer).text == "{}\n{}\n"
        assert await stopping == 0


def own(database_url: str) -> Mapping[str, str]:
    return {"AUTHZ_DATABASE_URL": database_url}


async def _has_asked(upstream: RawUpstream) -> bool:
    return any(request.target == "/api/chat" for request in upstream.received)


async def _lets_nobody_in(url: str) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            await client.get(f"{url}/healthz")
        except httpx.ConnectError:
            return True
    return False


async def test_it_stops_all_that_it_started(tmp_path: Path) -> None:
    async with up(tmp_path) as running:
        children = running.descendants()
        assert {"envoy", "postgres", "redis-server"} <= set(children)
        assert await running.stop() == 0
        assert not [pid for pid in children.values() if Path(f"/proc/{pid}").exists()]
        assert not (tmp_path / ".authz" / "env").exists()


@pytest.mark.parametrize(
    ("program", "name"),
    [("envoy", "envoy"), ("postgres", "postgres"), ("redis-server", "redis")],
)
async def test_a_child_that_dies_ends_the_run_and_is_named(
    tmp_path: Path, database_url: str, program: str, name: str
) -> None:
    # Only the database that may die here has to be its own, which takes a while.
    given = {} if name == "postgres" else {"AUTHZ_DATABASE_URL": database_url}
    async with up(tmp_path, env=given) as running:
        os.kill(running.descendants()[program], signal.SIGKILL)
        _, err = await asyncio.wait_for(running.process.communicate(), READY_WITHIN_S)
        assert running.process.returncode == 1
        assert err.decode().startswith(f"authz: {name} was ended by SIGKILL")


async def test_a_taken_port_is_one_line_that_names_it(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ended = await authz("up", "--listen", f"127.0.0.1:{port}", cwd=tmp_path)
    server.close()
    assert (ended.status, ended.out) == (2, "")
    problem = f"cannot listen on port {port} of 127.0.0.1: it is taken"
    assert ended.err == f"authz: {problem}\n"


async def test_a_demo_key_that_no_longer_works_is_made_anew(tmp_path: Path) -> None:
    async with up(tmp_path):
        await authz("keys", "revoke", "demo", cwd=tmp_path)
        old = (tmp_path / ".authz" / "demo.key").read_text().strip()
    async with up(tmp_path) as again:
        new = (tmp_path / ".authz" / "demo.key").read_text().strip()
        assert (await ask(again.url, old)).status_code == 401
        assert (await ask(again.url, new)).status_code == 200


async def test_the_demo_key_of_another_folder_stays_as_it_is(
    tmp_path: Path, database_url: str
) -> None:
    env = {"AUTHZ_DATABASE_URL": database_url}
    folders = [tmp_path / "a", tmp_path / "b"]
    keys = []
    for folder in folders:
        folder.mkdir()
        async with up(folder, env=env) as running:
            keys.append((folder / ".authz" / "demo.key").read_text().strip())
            statuses = [(await ask(running.url, key)).status_code for key in keys]
            assert set(statuses) == {200}


async def test_the_health_check_asks_the_service_of_its_folder(tmp_path: Path) -> None:
    async with up(tmp_path):
        assert (await authz("healthcheck", cwd=tmp_path)).out == "ready\n"
        deep = await authz("healthcheck", "--deep", cwd=tmp_path)
        assert "ok      Envoy serves what stands in its files: " in deep.out
        env = dotenv_values(tmp_path / ".authz" / "env")
    ended = await authz(
        "healthcheck", cwd=tmp_path, env={k: v for k, v in env.items() if v}
    )
    assert ended.status == 1


@pytest.mark.parametrize("listen", ["nowhere.invalid:80", "127.0.0.1:0", "8080", ""])
async def test_an_address_that_is_none_is_one_line(tmp_path: Path, listen: str) -> None:
    ended = await authz("up", "--listen", listen, cwd=tmp_path)
    assert ended.status == 2
    assert ended.err == "authz: --listen takes host:port, as in 127.0.0.1:8080\n"


async def test_an_explicit_upstream_is_never_replaced(
    tmp_path: Path, database_url: str
) -> None:
    given = {"AUTHZ_DATABASE_URL": database_url}
    async with up(tmp_path, "--upstream", "http://127.0.0.1:1", env=given) as running:
        assert not any("stand-in" in line for line in running.lines)
        key = (tmp_path / ".authz" / "demo.key").read_text().strip()
        answer = await ask(running.url, key)
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "upstream_error"


async def test_two_workers_share_the_work(tmp_path: Path, database_url: str) -> None:
    given = {"AUTHZ_DATABASE_URL": database_url}
    async with up(tmp_path, "--workers", "2", env=given) as running:
        key = (tmp_path / ".authz" / "demo.key").read_text().strip()
        statuses = {(await ask(running.url, key)).status_code for _ in range(20)}
        assert statuses == {200}
        (line,) = [line for line in running.lines if line.startswith("metrics")]
        async with httpx.AsyncClient() as client:
            page = await client.get(line.split()[1])
        allowed = 'authz_decisions_total{endpoint="/api/chat",reason="allowed"} 20.0'
        assert allowed in page.text
