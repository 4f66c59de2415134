"""Each example of docs/envoy.md does what the page says of it, in a real Envoy."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from authz.core.credential import mint
from authz.envoy_check import check
from authz.local import envoy as local_envoy
from authz.local.envoy import Places, config_sources
from authz.local.process import private_directory
from authz.local.stack import listening_port, running_envoy
from tests import rows
from tests.certificates import new_authority
from tests.diffs import StaleDiffError, apply_diff, diffs_of
from tests.failing import until
from tests.integration.edge.test_strangers import checks_of
from tests.manifests import ROOT
from tests.raw import http1
from tests.rows import assert_row
from tests.upstream import Act, RawUpstream, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.certificates import Authority
    from tests.gateway import Gateway
    from tests.raw import Answer

    RawGateway = Gateway[RawUpstream]

EXAMPLES = diffs_of((ROOT / "docs/envoy.md").read_text())
UPSTREAM = "Another upstream"
SEVERAL = "Several Ollama servers"
TLS = "TLS at the door"
REMOTE = "authz on other machines"
LIMITS = "Other limits"
BROWSERS = "Browsers"
FRONT = "A gateway in front"
ROUTE = "A new route"
# REMOTE is run by test_remote_authz.py.
TESTED = {UPSTREAM, SEVERAL, TLS, REMOTE, LIMITS, BROWSERS, FRONT, ROUTE}

WITHIN_S = 20.0
BODY = b'{"model":"llama3.1"}'
CLOSING = (
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    Act.CLOSE,
)
LOCAL = "address: 127.0.0.1, port_value: "
OLLAMA = f"{LOCAL}11434"
UNKNOWN = mint(b"never issued".ljust(32))


def test_every_example_of_the_page_is_tested() -> None:
    assert set(EXAMPLES) == TESTED


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_opens_no_hole(title: str, tmp_path: Path) -> None:
    files = edited(title, tmp_path).glob("*.yaml")
    report = check({file.name: file.read_bytes() for file in files})
    assert report.findings == []


def edited(title: str, folder: Path) -> Path:
    """Copy Envoy's files and edit them as the example says."""
    shutil.copytree(config_sources(), folder / "envoy")
    apply_diff(EXAMPLES[title], folder)
    return folder / "envoy"


@asynccontextmanager
async def example(
    title: str, raw: RawGateway, folder: Path, places: Mapping[str, str]
) -> AsyncIterator[RawGateway]:
    """Run another Envoy, with an example, before the authz of a gateway.

    ``places`` are here for those that the files name.
    """
    with private_directory("authz-example-") as run:
        at = Places(run / "envoy", run, ("", 0), ("", 0), run)
        at.directory.mkdir()
        surroundings = {
            "/etc/envoy": str(at.directory),
            "/run/authz/admin.sock": str(run / "admin.sock"),
            "/run/authz/authz-0.sock": str(raw.run / "authz-0.sock"),
            "address: 0.0.0.0, port_value: 8080": f"{LOCAL}0",
            f"{LOCAL}9465": f"{LOCAL}0",
        }
        for file, text in moved(edited(title, folder), places, surroundings).items():
            (at.directory / file).write_text(text)
        async with running_envoy(at, log=folder / "envoy.log") as envoy:
            port = await listening_port(at)
            yield replace(raw, port=port, envoy=envoy, logs=folder)


def moved(
    sources: Path, named: Mapping[str, str], surroundings: Mapping[str, str]
) -> Mapping[str, str]:
    """Read files and put other places into them; all of ``named`` must be there."""
    texts = {file.name: file.read_text() for file in sources.glob("*.*")}
    for place, other in {**named, **surroundings}.items():
        assert place in surroundings or any(place in text for text in texts.values())
        texts = {name: text.replace(place, other) for name, text in texts.items()}
    return texts


@asynccontextmanager
async def model_server(
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[RawUpstream, str]]:
    """Listen until the block ends; yields the server and its place."""
    upstream = RawUpstream()
    async with await asyncio.start_server(
        upstream.serve, "127.0.0.1", 0, ssl=tls
    ) as server:
        try:
            yield upstream, f"{LOCAL}{server.sockets[0].getsockname()[1]}"
        finally:
            upstream.released.set()


def request(
    key: str, path: str = "/api/chat", *headers: str, body: bytes = BODY
) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: a", f"authorization: Bearer {key}"]
    lines += [f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def ask(gateway: RawGateway, key: str, *more: str, body: bytes = BODY) -> Answer:
    return await http1(gateway.port, request(key, *more, body=body))


# --- Another upstream -------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return new_authority(tmp_path, "models")


@pytest.mark.parametrize("name", ["models.example.com", "other.example.com"])
async def test_a_server_elsewhere_is_verified_and_demands_our_certificate(
    raw: RawGateway, tmp_path: Path, authority: Authority, name: str
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue(tmp_path, name))
    tls.load_verify_locations(authority.root)
    tls.verify_mode = ssl.CERT_REQUIRED
    client, secret = authority.issue(tmp_path, "gateway.example.com")
    async with model_server(tls=tls) as (server, place):
        places = {
            "address: models.example.com, port_value: 443": place,
            "/etc/envoy/tls/models-ca.crt": str(authority.root),
            "/etc/envoy/tls/client.crt": str(client),
            "/etc/envoy/tls/client.key": str(secret),
        }
        async with example(UPSTREAM, raw, tmp_path, places) as gateway:
            answered = await ask(gateway, await gateway.new_key())
        if name == "models.example.com":
            assert answered.status == 200
            assert [got.headers["host"] for got in server.received] == ["localhost"]
        else:
            assert_row(answered, rows.UPSTREAM)
            assert server.received == []


# --- Several Ollama servers -------------------------------------------------------


def asked(server: RawUpstream) -> int:
    """Count the requests of clients: not those that ask for its health."""
    return sum(got.target != "/api/version" for got in server.received)


def servers(first: str, second: str) -> Mapping[str, str]:
    """Return where the servers of the example are here."""
    return {
        "address: 10.0.0.11, port_value: 11434": first,
        "address: 10.0.0.12, port_value: 11434": second,
    }


async def test_the_server_with_the_least_to_do_gets_the_next_request(
    raw: RawGateway, tmp_path: Path
) -> None:
    async with model_server() as (one, there), model_server() as (two, elsewhere):
        places = servers(there, elsewhere)
        async with example(SEVERAL, raw, tmp_path, places) as gateway:
            key, end = await gateway.new_key(), asyncio.Event()
            head, *rest = stream("application/x-ndjson", [b'{"n":1}\n'])
            one.script = two.script = (head, end, *rest)
            running = asyncio.create_task(ask(gateway, key))

            async def begun() -> bool:
                return asked(one) + asked(two) == 1

            await until(begun, WITHIN_S)
            busy, idle = (one, two) if asked(one) else (two, one)
            idle.reset()
            for _ in range(8):
                assert (await ask(gateway, key)).status == 200
            assert (asked(busy), asked(idle)) == (1, 8)
            end.set()
            assert (await running).status == 200


async def test_a_server_that_goes_away_costs_nobody_an_error(
    raw: RawGateway, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack, model_server() as (one, there):
        two, elsewhere = await stack.enter_async_context(model_server())
        places = servers(there, elsewhere)
        # So that nothing stays connected.
        one.script = two.script = CLOSING
        async with example(SEVERAL, raw, tmp_path, places) as gateway:
            key = await gateway.new_key()
            while not (asked(one) and asked(two)):
                assert (await ask(gateway, key)).status == 200
            one.reset()
            await stack.aclose()
            for size in (20, 70_000, 2_000_000) * 2:
                answered = await ask(gateway, key, body=BODY.ljust(size))
                assert answered.status == 200
            assert asked(one) == 6


# --- TLS at the door --------------------------------------------------------------


async def test_the_door_speaks_tls_alone(
    raw: RawGateway, tmp_path: Path, authority: Authority
) -> None:
    certificate, key = authority.issue(tmp_path, "127.0.0.1")
    places = {
        "/etc/envoy/tls/tls.crt": str(certificate),
        "/etc/envoy/tls/tls.key": str(key),
        "path: /etc/envoy/tls,": f"path: {tmp_path},",
    }
    trusted = ssl.create_default_context(cafile=authority.root)
    async with (
        example(TLS, raw, tmp_path, places) as gateway,
        httpx.AsyncClient(verify=trusted, http2=True) as client,
    ):
        answered = await client.get(f"https://127.0.0.1:{gateway.port}/healthz")
        assert (answered.status_code, answered.http_version) == (200, "HTTP/2")
        assert (await ask(gateway, UNKNOWN)).status == 0


# --- Other limits -----------------------------------------------------------------


async def test_rates_and_times_are_those_of_the_example(
    raw: RawGateway, tmp_path: Path
) -> None:
    async with model_server() as (server, place):
        # Nobody waits for a quarter of an hour, or asks 50 times in a second.
        places = {
            OLLAMA: place,
            "max_stream_duration: 900s": "max_stream_duration: 2s",
            "fill_interval: 1s": "fill_interval: 3600s",
        }
        async with example(LIMITS, raw, tmp_path, places) as gateway:
            key = await gateway.new_key()
            head, *_ = stream("application/x-ndjson", [])
            server.script = (head, Act.HANG)
            answered = await ask(gateway, key)
            assert (answered.status, answered.ended) == (200, "broken off")

            server.reset()
            statuses = [(await ask(gateway, key)).status for _ in range(50)]
            assert statuses == [200] * 49 + [429]


# --- Browsers ---------------------------------------------------------------------


async def test_pages_of_the_named_origins_are_let_in_and_no_others(
    raw: RawGateway, tmp_path: Path
) -> None:
    async with example(BROWSERS, raw, tmp_path, {}) as gateway:
        statuses = {
            origin: (await preflight(gateway, origin)).status
            for origin in (
                "https://ui.example.com",
                "http://localhost:3000",
                "https://chat.example.com",
            )
        }
        assert list(statuses.values()) == [204, 204, 401]


async def preflight(gateway: RawGateway, origin: str) -> Answer:
    lines = ["OPTIONS /api/chat HTTP/1.1", "host: a", f"origin: {origin}"]
    lines += ["access-control-request-method: POST", "", ""]
    return await http1(gateway.port, "\r\n".join(lines).encode())


# --- A gateway in front -----------------------------------------------------------


async def test_the_id_and_the_client_of_the_gateway_in_front_are_believed(
    raw: RawGateway, tmp_path: Path
) -> None:
    async with example(FRONT, raw, tmp_path, {}) as gateway:
        told = ("x-request-id: from-the-front", "x-forwarded-for: 203.0.113.7")
        answered = await ask(gateway, UNKNOWN, "/api/chat", *told)
        assert answered.error["request_id"] == "from-the-front"

        async def logged() -> bool:
            lines = (gateway.logs / "envoy.log").read_text().splitlines()
            entries = [json.loads(line) for line in lines if line[0] == "{"]
            remotes = {entry["request_id"]: entry["remote"] for entry in entries}
            return remotes.get("from-the-front") == "203.0.113.7"

        await until(logged, WITHIN_S)


# --- A new route -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "checks"), [(100, 1), (70_000, 2)], ids=["short", "long"]
)
async def test_embeddings_go_to_servers_of_their_own_and_are_checked_like_all(
    raw: RawGateway, tmp_path: Path, size: int, checks: int
) -> None:
    async with model_server() as (others, place), model_server() as (pool, elsewhere):
        places = {OLLAMA: place, "address: 10.0.0.20, port_value: 11434": elsewhere}
        async with example(ROUTE, raw, tmp_path, places) as gateway:
            key, body = await gateway.new_key("llama3.1"), BODY.ljust(size)
            paths = ["/api/embed", "/api/embeddings", "/v1/embeddings"]
            for path in paths:
                before = await checks_of(gateway)
                assert (await ask(gateway, key, path, body=body)).status == 200
                assert await checks_of(gateway) - before == checks
                refused = await ask(gateway, UNKNOWN, path, body=body)
                assert_row(refused, rows.UNAUTHORIZED)
            assert [got.target for got in pool.received] == paths
            assert (await ask(gateway, key, body=body)).status == 200
            assert [got.target for got in others.received] == ["/api/chat"]


def test_authz_up_takes_clusters_of_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = edited(ROUTE, tmp_path)
    monkeypatch.setattr(local_envoy, "config_sources", lambda: sources)
    nowhere = ("127.0.0.1", 0)
    at = Places(tmp_path / "up", tmp_path, nowhere, nowhere, tmp_path / "up.sock")
    local_envoy.write_config(at)
    assert "10.0.0.20" in (at.directory / "clusters.yaml").read_text()


# --- The diffs themselves ---------------------------------------------------------


def test_a_diff_that_does_not_fit_the_files_is_an_error(tmp_path: Path) -> None:
    sources = edited(FRONT, tmp_path)
    with pytest.raises(StaleDiffError):
        apply_diff(EXAMPLES[FRONT], sources.parent)


FILE = "--- a/file\n+++ b/file\n"


@pytest.mark.parametrize(
    "diff",
    [
        "@@ -1 +1 @@\n-one\n+two\n",
        FILE,
        f"{FILE}@@ -1 +1 @@\n-same\n+other\n",
        f"{FILE}@@ -1 +1 @@\n-on\n+other\n",
        f"{FILE}@@ -1 +1,2 @@\n-one\n+other\n",
        f"{FILE}@@ -1 +1 @@\none\n+other\n",
    ],
    ids=["no file", "no hunk", "twice", "half a line", "wrong count", "odd line"],
)
def test_a_diff_is_applied_strictly(diff: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one\nsame\nsame\n")
    with pytest.raises(StaleDiffError):
        apply_diff(diff, tmp_path)
    assert file.read_text() == "one\nsame\nsame\n"
