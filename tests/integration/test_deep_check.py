"""`authz healthcheck --deep` finds what stands open, and says it in one line."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from authz.adapters.postgres import connected
from authz.adapters.postgres_grants import SERVICE, grant
from authz.cli import probes
from authz.cli.deep_check import clock, look_around
from authz.cli.healthcheck import healthcheck
from authz.cli.observation import Observation, State
from authz.config import Settings
from authz.errors import Refused
from authz.local.stack import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.services import Databases

    Address = tuple[str, int]

OLLAMA = {"/api/version": {"version": "0.33.0"}}
CLOUD_OFF = {"/api/status": {"cloud": {"disabled": True, "source": "env"}}}
CLOUD_ON = {"/api/status": {"cloud": {"disabled": False, "source": "none"}}}
ADMIN = {"/server_info": {"hot_restart_version": "11.104"}}
READY: Mapping[str, Any] = {"/readyz": {}}
HEADING = "  sl  local_address rem_address   st tx_queue rx_queue\n"


@contextmanager
def serving(
    answers: Mapping[str, Any], host: str = "127.0.0.1", *, chunked: bool = False
) -> Iterator[Address]:
    """Serve JSON, by path, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known = self.path in answers
            body = json.dumps(answers[self.path]).encode() if known else b""
            self.send_response(200 if known else 404)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
                body = b"1\r\n%b\r\n%x;x=y\r\n%b\r\n0\r\n\r\n" % (
                    *(body[:1], len(body) - 1, body[1:]),
                )
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with Server((host, 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield host, server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def nobody() -> Address:
    return "127.0.0.1", free_port()


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> list[Address]:
    """Have only these found listening: other tests' servers are none of ours."""
    found: list[Address] = []
    monkeypatch.setattr(probes, "listening", lambda: iter(found))
    return found


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    return Settings(
        database_url=SecretStr(database_url), redis_url=SecretStr(redis_url)
    )


def states(findings: list[Observation], word: str) -> list[str]:
    """Return the states of the findings that speak of something."""
    return [finding.state for finding in findings if word in finding.text]


@pytest.mark.parametrize("host", ["127.0.0.3", "::1", "0.0.0.0", "::"])  # noqa: S104
def test_every_port_that_listens_is_found(host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as ours:
        ours.bind((host, 0))
        ours.listen()
        assert ours.getsockname()[:2] in list(probes.listening())


@pytest.mark.usefixtures("listening")
async def test_nothing_open_is_said_line_by_line(
    server: Databases, settings: Settings
) -> None:
    owner = settings.database_url.get_secret_value()
    async with server.role(owner) as service, connected(owner) as connection:
        await grant(connection, await role_of(service), SERVICE)
        ended = await ended_healthcheck(settings, AUTHZ_DATABASE_URL=service)
    *lines, last = ended.output.splitlines()
    seen = [line for line in lines if "Envoy's files" not in line]
    assert [line.split()[0] for line in seen] == [State.OK] * 7
    assert (last, ended.exit_code) == ("ready", 0)


@pytest.mark.usefixtures("listening")
async def test_the_command_is_refused_if_anything_is_open(settings: Settings) -> None:
    ended = await ended_healthcheck(settings)
    assert "open    the database role may change keys" in ended.output
    assert isinstance(ended.exception, Refused)
    assert str(ended.exception) == "1 open"


async def ended_healthcheck(settings: Settings, **env: str) -> Result:
    """Run the command where an Ollama and a ready service are in order."""
    database = settings.database_url.get_secret_value()
    redis = settings.redis_url.get_secret_value()
    with serving(OLLAMA | CLOUD_OFF) as ollama, serving(READY) as service:
        given = {
            "AUTHZ_DATABASE_URL": database,
            "AUTHZ_REDIS_URL": redis,
            "AUTHZ_METRICS_LISTEN": "{}:{}".format(*service),
        }
        words = ["--deep", "--ollama", "{}:{}".format(*ollama)]
        return await asyncio.to_thread(
            CliRunner().invoke, healthcheck, words, env=given | env
        )


async def role_of(url: str) -> str:
    async with connected(url) as connection:
        name: str = await connection.fetchval("SELECT current_user")
        return name


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
async def test_an_ollama_on_the_network_is_open(
    settings: Settings, listening: list[Address], nobody: Address, host: str
) -> None:
    with serving(OLLAMA, host) as ollama, serving(OLLAMA) as on_loopback:
        listening += [ollama, on_loopback]
        findings = await look_around(settings, nobody)
    port = str(ollama[1])
    assert [f.state for f in findings if f":{port}" in f.text] == [State.OPEN]
    assert not [f for f in findings if f":{on_loopback[1]}" in f.text]


async def test_an_admin_interface_on_a_port_is_open(
    settings: Settings, listening: list[Address], nobody: Address
) -> None:
    with serving(ADMIN) as admin:
        listening.append(admin)
        findings = await look_around(settings, nobody)
    assert states(findings, "admin interface is at") == [State.OPEN]


@pytest.mark.parametrize(
    ("told", "state"),
    [
        (CLOUD_OFF, State.OK),
        (CLOUD_ON, State.OPEN),
        ({}, State.UNKNOWN),
        ({"/api/status": []}, State.UNKNOWN),
        ({"/api/status": {"cloud": {"disabled": "yes"}}}, State.UNKNOWN),
    ],
)
@pytest.mark.usefixtures("listening")
async def test_a_cloud_that_is_on_is_open(
    settings: Settings, told: Mapping[str, Any], state: str
) -> None:
    with serving({**OLLAMA, **told}) as ollama:
        findings = await look_around(settings, ollama)
    assert states(findings, "cloud") == [state]


async def test_what_listens_and_says_nothing_holds_nobody_up(
    settings: Settings, listening: list[Address], nobody: Address
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        listening.append(silent.getsockname())
        findings = await asyncio.wait_for(look_around(settings, nobody), 10)
    assert states(findings, "ports that listen") == [State.OK]


@pytest.mark.usefixtures("listening")
async def test_an_answer_in_chunks_is_read(settings: Settings) -> None:
    with serving({**OLLAMA, **CLOUD_ON}, chunked=True) as ollama:
        findings = await look_around(settings, ("localhost", ollama[1]))
    assert states(findings, "cloud") == [State.OPEN]
    assert states(findings, "shares this network namespace") == [State.OK]


async def test_an_ollama_on_all_addresses_is_open_where_ipv6_is_off(
    settings: Settings, listening: list[Address], nobody: Address
) -> None:
    """What listens on all addresses of both kinds is in the table as ``::``."""
    with serving(OLLAMA, "0.0.0.0") as ollama:  # noqa: S104
        listening.append(("::", ollama[1]))
        findings = await look_around(settings, nobody)
    assert states(findings, f"at [::]:{ollama[1]}") == [State.OPEN]


@pytest.mark.usefixtures("listening")
async def test_what_the_stores_let_the_service_do_is_told(
    settings: Settings, nobody: Address
) -> None:
    findings = await look_around(settings, nobody)
    assert states(findings, "database role") == [State.OPEN]
    assert states(findings, "schema") == [State.OK]
    assert states(findings, "clock") == [State.OK, State.OK]


@pytest.mark.usefixtures("listening")
async def test_a_schema_that_does_not_fit_is_open(
    server: Databases, redis_url: str, nobody: Address
) -> None:
    async with server.fresh(migrated=False) as url:
        settings = Settings(database_url=SecretStr(url), redis_url=SecretStr(redis_url))
        findings = await look_around(settings, nobody)
    assert states(findings, "run authz migrate") == [State.OPEN]


@pytest.mark.usefixtures("listening")
async def test_stores_that_are_away_are_unknown(
    tmp_path: Path, nobody: Address
) -> None:
    host, port = nobody
    settings = Settings(
        database_url=SecretStr(f"postgresql://u:secret@{host}:{port}/authz"),
        redis_url=SecretStr(f"unix://{tmp_path / 'none.sock'}"),
        listen=tmp_path,
    )
    findings = await look_around(settings, nobody)
    assert [f.state for f in findings] == [
        *(State.OK, State.OK),
        *(State.UNKNOWN, State.UNKNOWN, State.UNKNOWN),
    ]
    assert "secret" not in str(findings)


@pytest.mark.parametrize(
    ("ahead_s", "state", "text"),
    [
        (1, State.OK, "agrees"),
        (9, State.OPEN, "9 s ahead of"),
        (-9, State.OPEN, "9 s behind"),
    ],
)
def test_a_clock_that_is_off_is_open(ahead_s: int, state: str, text: str) -> None:
    there = datetime.now(UTC) - timedelta(seconds=ahead_s)
    finding = clock("Redis", there)
    assert finding.state == state
    assert text in finding.text
