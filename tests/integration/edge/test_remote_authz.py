"""authz on other machines: each side shows who it is, or nothing is let through."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2

from authz.cli.observation import State
from authz.edge.server import SERVICE
from authz.local.envoy import config_sources, envoy_binary
from authz.local.process import running, wait_until_ready
from authz.local.stack import free_port
from tests.certificates import Authority, new_authority
from tests.diffs import apply_diff, diffs_of
from tests.failing import until
from tests.gateway import own_gateway
from tests.live import WITHIN_S, Live, listens, mount, stats
from tests.manifests import FOLDER, ROOT, containers, moved, written
from tests.raw import http1
from tests.rows import UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.gateway import Stores

THERE = "authz-remote.authz.svc"
ASKS, TELLS = "gateway.authz.internal", "gateway-log.authz.internal"
EXAMPLE = diffs_of((ROOT / "docs/envoy.md").read_text())["authz on other machines"]
PAST = timedelta(hours=-1)

CHECK = "/envoy.service.auth.v3.Authorization/Check"
PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
LOG = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
HEALTH = "/grpc.health.v1.Health/Check"


@dataclass(frozen=True, slots=True)
class Shows:
    """What one side shows of itself."""

    authority: Authority
    name: str
    ends: timedelta = timedelta(days=1)

    def files(self, folder: Path, trusts: bytes) -> Mapping[str, bytes]:
        """Return what its Secret holds."""
        certificate, key = self.authority.issue(folder, self.name, ends=self.ends)
        return {
            "tls.crt": certificate.read_bytes(),
            "tls.key": key.read_bytes(),
            "ca.crt": trusts,
        }


@dataclass
class Site:
    """A gateway whose authz is reached over the network, and that authz."""

    stores: Stores
    folder: Path
    port: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)
    # Times of the proxy for which no test waits.
    times: dict[str, str] = field(default_factory=dict)

    @property
    def secret(self) -> Path:
        """Where the proxy of authz finds what it shows."""
        return self.folder / "authz-tls"

    @asynccontextmanager
    async def gateway(
        self, asks: Mapping[str, bytes], tells: Mapping[str, bytes]
    ) -> AsyncIterator[Live]:
        """Run a gateway with the example of docs/envoy.md."""

        def edit(directory: Path) -> None:
            self.put_example(directory)
            for name, shown in (("authz-client", asks), ("authz-log-client", tells)):
                (directory / name).mkdir()
                mount(directory / name, shown)

        async with own_gateway(self.stores, self.folder, edit) as gateway:
            yield Live(gateway, await gateway.new_key())

    def put_example(self, directory: Path) -> None:
        shutil.copytree(config_sources(), self.folder / "example/envoy")
        apply_diff(EXAMPLE, self.folder / "example")
        places = {
            "/etc/envoy": str(directory),
            f"{THERE}, port_value: 9001": f"127.0.0.1, port_value: {self.port}",
        }
        for file in (self.folder / "example/envoy").glob("authz-*.yaml"):
            there = {"/etc/envoy": str(directory)}
            (directory / file.name).write_text(moved(file.read_text(), there))
        text = moved((self.folder / "example/envoy/clusters.yaml").read_text(), places)
        remote = yaml.safe_load(text)["resources"]
        clusters = yaml.safe_load((directory / "clusters.yaml").read_text())
        model_server = clusters["resources"][-1]
        config = {"resources": [*remote[:-1], model_server]}
        (directory / "clusters.yaml").write_text(yaml.safe_dump(config))

    @asynccontextmanager
    async def authz(self, run: Path) -> AsyncIterator[None]:
        """Run what examples/remote has before the socket of authz."""
        there = self.folder / "proxy"
        there.mkdir(exist_ok=True)
        places = {"/etc/envoy": str(there), "/etc/tls": str(self.secret)}
        of_proxy = {
            "0.0.0.0, port_value: 9001": f"127.0.0.1, port_value: {self.port}",
            "0.0.0.0, port_value: 9466": f"127.0.0.1, port_value: {self.metrics}",
            "/run/authz/admin.sock": str(run / "proxy.sock"),
            "/run/authz": str(run),
            **self.times,
        }
        for name in ("proxy.yaml", "certificate.yaml", "authority.yaml"):
            text = (FOLDER / "examples/remote" / name).read_text()
            for place, other in places.items():
                text = text.replace(place, other)
            (there / name).write_text(
                moved(text, of_proxy) if name == "proxy.yaml" else text
            )
        pods = containers(written("examples/remote"))
        (proxy,) = (container for container in pods if container["name"] == "proxy")
        arguments = (word.replace("/etc/envoy", str(there)) for word in proxy["args"])
        command = [str(envoy_binary()), *arguments]
        async with running("proxy", command, log=self.folder / "proxy.log") as child:
            await wait_until_ready(child, lambda: listens(self.port), WITHIN_S)
            yield


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return new_authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return new_authority(tmp_path, "theirs")


@pytest.fixture
def site(stores: Stores, tmp_path: Path) -> Site:
    found = Site(stores, tmp_path)
    found.secret.mkdir()
    return found


@pytest.fixture
async def live(site: Site, ours: Authority) -> AsyncIterator[Live]:
    """Both sides, as they are meant to be."""
    root = ours.root.read_bytes()
    mount(site.secret, Shows(ours, THERE).files(site.folder, root))
    asks = Shows(ours, ASKS).files(site.folder, root)
    tells = Shows(ours, TELLS).files(site.folder, root)
    async with site.gateway(asks, tells) as live, site.authz(live.gateway.run):
        yield live


# --- Who is who -------------------------------------------------------------------


async def test_a_gateway_asks_and_tells_over_the_network(live: Live) -> None:
    async with live.streaming():
        assert (await live.ask()).status_code == 200
        assert await live.served() == State.OK
    await live.until_counted(3)


@pytest.mark.parametrize("wrong", ["name", "authority", "expired"])
async def test_nobody_else_answers_in_the_place_of_authz(
    site: Site, ours: Authority, theirs: Authority, wrong: str
) -> None:
    shown = {
        "name": Shows(ours, "other.authz.svc"),
        "authority": Shows(theirs, THERE),
        "expired": Shows(ours, THERE, PAST),
    }[wrong]
    root = ours.root.read_bytes()
    mount(site.secret, shown.files(site.folder, root))
    asks = Shows(ours, ASKS).files(site.folder, root)
    tells = Shows(ours, TELLS).files(site.folder, root)
    async with site.gateway(asks, tells) as live, site.authz(live.gateway.run):
        await assert_nothing_passes(live)


@pytest.mark.parametrize("wrong", ["name", "authority", "expired", "none", "tells"])
async def test_who_may_not_ask_lets_nothing_through(
    site: Site, ours: Authority, theirs: Authority, wrong: str
) -> None:
    root = ours.root.read_bytes()
    mount(site.secret, Shows(ours, THERE).files(site.folder, root))
    tells = Shows(ours, TELLS).files(site.folder, root)
    asks = {
        "name": Shows(ours, "other.authz.internal"),
        "authority": Shows(theirs, ASKS),
        "expired": Shows(ours, ASKS, PAST),
        "none": Shows(ours, ASKS),
        "tells": Shows(ours, TELLS),
    }[wrong].files(site.folder, root)
    async with site.gateway(asks, tells) as live, site.authz(live.gateway.run):
        if wrong == "none":
            await show_no_certificate(live)
        await assert_nothing_passes(live)


async def show_no_certificate(live: Live) -> None:
    clusters = yaml.safe_load(live.text("clusters.yaml"))
    socket = clusters["resources"][0]["transport_socket"]["typed_config"]
    del socket["common_tls_context"]["tls_certificate_sds_secret_configs"]
    taken = await live.count("clusters.yaml", "success")
    live.put(clusters=yaml.safe_dump(clusters))
    await live.until_taken("clusters.yaml", taken)


async def assert_nothing_passes(live: Live) -> None:
    for _ in range(3):
        answered = await live.ask()
        assert answered.status_code == UNAVAILABLE.status
        assert answered.json()["error"]["code"] == UNAVAILABLE.code
    assert live.gateway.upstream.received == []


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("name", "may"), [(ASKS, {CHECK, PROCESS, HEALTH}), (TELLS, {LOG})]
)
async def test_each_name_may_call_its_own_and_nothing_else(
    site: Site, ours: Authority, name: str, may: set[str]
) -> None:
    certificate, key = ours.issue(site.folder, name)
    credentials = grpc.ssl_channel_credentials(
        ours.root.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    options = [("grpc.ssl_target_name_override", THERE)]
    where = f"127.0.0.1:{site.port}"
    async with grpc.aio.secure_channel(where, credentials, options) as channel:
        refused = {
            method
            for method in (CHECK, PROCESS, LOG, HEALTH, "/grpc.reflection.v1/Any")
            if await code_of(channel, method) is grpc.StatusCode.PERMISSION_DENIED
        }
    assert {CHECK, PROCESS, LOG, HEALTH} - refused == may
    assert "/grpc.reflection.v1/Any" in refused


async def code_of(channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    """Send one message, which looks the same to all kinds of methods."""
    asked = health_pb2.HealthCheckRequest(service=SERVICE).SerializeToString()
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    try:
        await call(asked if method == HEALTH else b"", timeout=WITHIN_S)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.usefixtures("live")
async def test_the_proxy_shows_two_paths_of_its_admin_interface(site: Site) -> None:
    shown = {path: await got_of(site.metrics, path) for path in ("/stats", "/quit")}
    assert shown == {"/stats": (404, b""), "/quit": (404, b"")}
    assert (await got_of(site.metrics, "/ready"))[0] == 200
    status, text = await got_of(site.metrics, "/stats/prometheus")
    assert (status, b"envoy_http_downstream_rq_total" in text) == (200, True)


async def got_of(port: int, path: str) -> tuple[int, bytes]:
    request = f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    answer = await http1(port, request.encode())
    return answer.status, answer.body


async def test_who_connects_and_says_nothing_takes_no_place_for_long(
    site: Site, ours: Authority
) -> None:
    site.times["transport_socket_connect_timeout: 10s"] = (
        "transport_socket_connect_timeout: 1s"
    )
    mount(site.secret, Shows(ours, THERE).files(site.folder, ours.root.read_bytes()))
    async with site.authz(site.folder), asyncio.timeout(WITHIN_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        assert await reader.read() == b""
        writer.close()


async def test_no_connection_stays_trusted_for_good_and_no_request_pays_for_it(
    site: Site, ours: Authority
) -> None:
    site.times["max_connection_duration: 3600s"] = "max_connection_duration: 1s"
    root = ours.root.read_bytes()
    mount(site.secret, Shows(ours, THERE).files(site.folder, root))
    asks = Shows(ours, ASKS).files(site.folder, root)
    tells = Shows(ours, TELLS).files(site.folder, root)
    async with site.gateway(asks, tells) as live, site.authz(live.gateway.run):
        connections = r"^cluster\.authz\.upstream_cx_total$"

        async def connected_anew() -> bool:
            assert (await live.ask()).status_code == 200
            (made,) = (await stats(live.gateway.run, connections)).values()
            return made > 2

        await until(connected_anew, WITHIN_S)


# --- Certificates that change while it runs ---------------------------------------


async def test_all_certificates_and_their_authority_change_and_no_stream_ends(
    site: Site, ours: Authority, theirs: Authority
) -> None:
    old, new = ours.root.read_bytes(), theirs.root.read_bytes()
    mount(site.secret, Shows(ours, THERE).files(site.folder, old))
    asks = Shows(ours, ASKS).files(site.folder, old)
    tells = Shows(ours, TELLS).files(site.folder, old)
    async with site.gateway(asks, tells) as live:
        async with site.authz(live.gateway.run), live.streaming():
            # First whom they trust, then what they show, then what is not needed.
            await renew(site, live, ours, old + new)
            await renew(site, live, theirs, old + new)
            await renew(site, live, theirs, new)
            assert (await live.ask()).status_code == 200
        # All connections are new ones now, and what there is was never ours.
        async with site.authz(live.gateway.run):

            async def passes() -> bool:
                return (await live.ask()).status_code == 200

            await until(passes, WITHIN_S)
            assert await live.served() == State.OK


async def renew(site: Site, live: Live, authority: Authority, trusts: bytes) -> None:
    """Renew the Secrets of all three; return when Envoy has taken them."""
    before = await taken(live)
    mount(site.secret, Shows(authority, THERE).files(site.folder, trusts))
    for name, shown in (("authz-client", ASKS), ("authz-log-client", TELLS)):
        files = Shows(authority, shown).files(site.folder, trusts)
        mount(live.folder / name, files)

    async def all_taken() -> bool:
        now = await taken(live)
        return all(now[name] > count for name, count in before.items())

    await until(all_taken, WITHIN_S)
    await until(lambda: well(live), WITHIN_S)


async def well(live: Live) -> bool:
    return await live.served() == State.OK


async def taken(live: Live) -> Mapping[str, int]:
    return await stats(live.gateway.run, "authz.*ssl_context_update_by_sds$")


async def test_a_wrong_certificate_of_the_gateway_is_refused_and_said(
    site: Site, live: Live, ours: Authority
) -> None:
    root = ours.root.read_bytes()
    good = Shows(ours, ASKS).files(site.folder, root)
    other = Shows(ours, ASKS).files(site.folder, root)
    async with live.streaming():
        mount(live.folder / "authz-client", {**good, "tls.key": other["tls.key"]})

        async def refused() -> bool:
            return await live.served() == State.OPEN

        await until(refused, WITHIN_S)
        assert "authz-client" in (await live.said()).text
        assert (await live.ask()).status_code == 200
        mount(live.folder / "authz-client", good)
        await until(lambda: well(live), WITHIN_S)
