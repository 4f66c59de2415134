"""What the containers of the manifests do, in the pod's place: real Envoy and authz."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import stat
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import yaml

from authz.config import load_peppers, load_settings
from authz.local.envoy import envoy_binary
from authz.local.process import private_directory, running, wait_until_ready
from authz.local.stack import free_port, got
from tests.certificates import new_authority
from tests.failing import until
from tests.gateway import own_gateway
from tests.live import mount, tls_socket
from tests.manifests import FOLDER, ROOT, gateway_pod, moved, written
from tests.programs import authz
from tests.raw import http1
from tests.upstream import stream

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from tests.gateway import Gateway, Stores
    from tests.manifests import Manifest
    from tests.upstream import RawUpstream

    Pod = Gateway[RawUpstream]

WITHIN_S = 20.0
HEALTHZ = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"
SSL_REQUEST = bytes.fromhex("0000000804d2162f")


@pytest.fixture(scope="module")
def containers() -> dict[str, Manifest]:
    return gateway_pod(written("base"))


@pytest.fixture(scope="module")
async def only_pod(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pod]:
    async with own_gateway(stores, tmp_path_factory.mktemp("pod")) as gateway:
        yield gateway


@pytest.fixture
async def pod(only_pod: Pod, containers: dict[str, Manifest]) -> AsyncIterator[Pod]:
    only_pod.upstream.reset()
    yield only_pod
    await tell_envoy(containers, "postStart", only_pod)


async def metrics_port(gateway: Pod) -> int:
    async with got(gateway.run / "admin.sock", "/listeners?format=json") as response:
        listeners = (await response.json(content_type=None))["listener_statuses"]
    (metrics,) = (one for one in listeners if one["name"] == "metrics")
    return int(metrics["local_address"]["socket_address"]["port_value"])


async def stat_of(gateway: Pod, name: str) -> int:
    path = f"/stats?filter=^{name}$"
    async with got(gateway.run / "admin.sock", path) as response:
        return int((await response.text()).rpartition(": ")[2])


async def start(command: list[str], places: Mapping[str, str]) -> Process:
    """Start the command of a hook, its script moved to other places."""
    program, *options = command
    script = next(n for n, word in enumerate(options) if "\n" in word)
    options[script] = moved(options[script], dict(places))
    # The only Python that there is for sure.
    return await asyncio.create_subprocess_exec(
        sys.executable if program == "python" else program, *options
    )


async def tell_envoy(containers: dict[str, Manifest], hook: str, pod: Pod) -> None:
    command = containers["authz"]["lifecycle"][hook]["exec"]["command"]
    process = await start(command, {"/run/authz": str(pod.run)})
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 0


async def wait_for_streams(containers: dict[str, Manifest], port: int) -> Process:
    command = containers["ollama"]["lifecycle"]["preStop"]["exec"]["command"]
    places = {"sleep 15": "sleep 0", "127.0.0.1/9465": f"127.0.0.1/{port}"}
    return await start(command, places)


async def test_ollama_ends_only_when_the_last_stream_has_ended(
    containers: dict[str, Manifest], pod: Pod
) -> None:
    end = asyncio.Event()
    lines = [b'{"n":1}\n', b'{"n":2}\n']
    head, first, *rest = stream("application/x-ndjson", lines)
    pod.upstream.script = (head, first, end, *rest)
    key = await pod.new_key()
    request = (
        b"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\n"
        b'content-length: 20\r\n\r\n{"model":"llama3.1"}' % key.encode()
    )
    streaming = asyncio.create_task(http1(pod.port, request))
    await until(lambda: _is(pod, "http.gateway.downstream_rq_active", 1), WITHIN_S)

    await tell_envoy(containers, "preStop", pod)
    asked = await stat_of(pod, "http.metrics.downstream_rq_total")
    waiting = await wait_for_streams(containers, await metrics_port(pod))
    await until(
        lambda: _is(pod, "http.metrics.downstream_rq_total", asked + 2), WITHIN_S
    )
    assert waiting.returncode is None

    end.set()
    assert await asyncio.wait_for(waiting.wait(), WITHIN_S) == 0
    answer = await streaming
    assert (answer.status, answer.body) == (200, b"".join(lines))


async def _is(pod: Pod, name: str, least: int) -> bool:
    return await stat_of(pod, name) >= least


async def test_ollama_waits_for_no_envoy_that_is_gone(
    containers: dict[str, Manifest],
) -> None:
    waiting = await wait_for_streams(containers, free_port())
    await asyncio.wait_for(waiting.wait(), WITHIN_S)


async def test_a_pod_that_ends_sends_its_clients_away(
    containers: dict[str, Manifest], pod: Pod
) -> None:
    assert (await http1(pod.port, HEALTHZ)).header("connection") is None
    await tell_envoy(containers, "preStop", pod)
    answer = await http1(pod.port, HEALTHZ)
    assert (answer.status, answer.header("connection")) == (200, "close")


async def test_a_restart_of_authz_alone_sends_nobody_away_for_good(
    containers: dict[str, Manifest], pod: Pod
) -> None:
    await tell_envoy(containers, "preStop", pod)
    await tell_envoy(containers, "postStart", pod)
    assert (await http1(pod.port, HEALTHZ)).header("connection") is None


async def test_authz_starts_where_envoy_does_not_run_yet(
    containers: dict[str, Manifest], tmp_path: Path
) -> None:
    command = containers["authz"]["lifecycle"]["postStart"]["exec"]["command"]
    process = await start(command, {"/run/authz": str(tmp_path)})
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 0


def test_the_folder_of_the_sockets_is_private_also_when_it_is_made_again(
    containers: dict[str, Manifest], tmp_path: Path
) -> None:
    tmp_path.chmod(0o2777)
    *install, folder = containers["socket-folder"]["command"]
    made = moved(folder, {"/volume": str(tmp_path)})
    for _ in range(2):
        subprocess.run([*install, made], check=True)
        assert stat.S_IMODE(Path(made).stat().st_mode) & 0o777 == 0o700


# --- Envoy as the pod runs it ---------------------------------------------------


@dataclass
class Places:
    """Where an Envoy of the pod finds its surroundings here."""

    run: Path
    gateway: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)
    network: int = field(default_factory=free_port)
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.run / "envoy.log"
        self.config = self.run / "config"
        self.config.mkdir()

    def here(self, text: str) -> str:
        """Move a file or an argument of the pod."""
        for place, other in (
            ("/etc/envoy", str(self.config)),
            ("/run/authz", str(self.run)),
            ("port_value: 8080", f"port_value: {self.gateway}"),
            ("port_value: 9465", f"port_value: {self.metrics}"),
            ("port_value: 9466", f"port_value: {self.network}"),
            ("address: 0.0.0.0", "address: 127.0.0.1"),
        ):
            text = text.replace(place, other)
        return text

    def mount(self, **changed: str) -> None:
        """Mount the files of envoy/, or a newer state of them."""
        files = {file.name: file.read_text() for file in (ROOT / "envoy").iterdir()}
        mount(
            self.config,
            {name: self.here(changed.get(name, text)) for name, text in files.items()},
        )


@pytest.fixture
def places() -> Iterator[Places]:
    with private_directory("authz-pod-") as run:
        yield Places(run)


@asynccontextmanager
async def envoy(arguments: Sequence[str], ready: int, log: Path) -> AsyncIterator[None]:
    command = [str(envoy_binary()), *arguments]
    async with running("envoy", command, log=log) as child:
        await wait_until_ready(child, lambda: _listens(ready), WITHIN_S)
        yield


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def test_envoy_takes_a_changed_config_map_while_it_runs(
    containers: dict[str, Manifest], places: Places
) -> None:
    places.mount()
    arguments = map(places.here, containers["envoy"]["args"])
    async with envoy([*arguments], places.gateway, places.log):
        routes = (ROOT / "envoy/routes.yaml").read_text()
        places.mount(**{"routes.yaml": moved(routes, {'"ok"': '"changed"'})})

        async def changed() -> bool:
            return b"changed" in (await http1(places.gateway, HEALTHZ)).body

        await until(changed, WITHIN_S)


async def test_a_pod_that_has_the_pair_takes_the_listener_with_tls_while_it_runs(
    containers: dict[str, Manifest], places: Places, tmp_path: Path
) -> None:
    authority = new_authority(tmp_path, "authority")
    certificate, key = authority.issue(tmp_path, "gateway.example.com")
    pair = {"tls.crt": certificate.read_bytes(), "tls.key": key.read_bytes()}
    places.mount()
    (places.config / "tls").mkdir()
    mount(places.config / "tls", pair)
    listener = yaml.safe_load((ROOT / "envoy/listener.yaml").read_text())
    chain = listener["resources"][0]["filter_chains"][0]
    chain["transport_socket"] = tls_socket(Path("/etc/envoy"))
    trusted = ssl.create_default_context(cafile=authority.root)
    arguments = map(places.here, containers["envoy"]["args"])
    async with envoy([*arguments], places.gateway, places.log):
        places.mount(**{"listener.yaml": yaml.safe_dump(listener)})

        async def speaks_tls() -> bool:
            assert await _listens(places.gateway), "what the probes ask"
            with suppress(ssl.SSLError, OSError):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1",
                    places.gateway,
                    ssl=trusted,
                    server_hostname="gateway.example.com",
                )
                writer.close()
                return True
            return False

        await until(speaks_tls, WITHIN_S)


async def test_envoy_reads_a_changed_script_with_the_next_listener(
    containers: dict[str, Manifest], places: Places
) -> None:
    places.mount()
    arguments = map(places.here, containers["envoy"]["args"])
    async with envoy([*arguments], places.gateway, places.log):
        listener = (ROOT / "envoy/listener.yaml").read_text()
        script = (ROOT / "envoy/gateway.lua").read_text()
        changed = {
            "listener.yaml": moved(
                listener, {"idle_timeout: 300s": "idle_timeout: 301s"}
            ),
            "gateway.lua": script + MARKING,
        }
        places.mount(**changed)

        async def marked() -> bool:
            answer = await http1(places.gateway, HEALTHZ)
            return answer.header("x-script") == "changed"

        await until(marked, WITHIN_S)


MARKING = """
local before = envoy_on_response
function envoy_on_response(handle)
  before(handle)
  handle:headers():replace("x-script", "changed")
end
"""


async def test_the_network_sees_two_paths_of_the_admin_interface(
    containers: dict[str, Manifest], places: Places
) -> None:
    places.mount()
    patch = FOLDER / "components/monitoring/gateway.yaml"
    added = [
        operation["value"]
        for operation in yaml.safe_load(patch.read_text())
        if operation["path"].endswith("/args/-")
    ]
    arguments = map(places.here, [*containers["envoy"]["args"], *added])
    async with envoy([*arguments], places.network, places.log):
        seen = {path: await get(places.network, path) for path in PATHS}
        assert seen == PATHS


PATHS = {"/stats/prometheus": 200, "/ready": 200, "/config_dump": 404, "/": 404}


async def get(port: int, path: str) -> int:
    request = f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"
    return (await http1(port, request.encode())).status


# --- Settings ---------------------------------------------------------------------


def test_the_secrets_of_dev_are_settings_that_work(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "overlays/dev/secrets.sh", tmp_path)
    subprocess.run([tmp_path / "secrets.sh"], check=True)
    made = tmp_path / "secrets"
    settings = load_settings(made / "service.env").model_copy(
        update={"key_pepper_file": made / "pepper"}
    )
    load_peppers(settings)
    roles = dict(
        line.split("=") for line in (made / "postgres.env").read_text().splitlines()
    )
    assert settings.cache_secret.get_secret_value()
    for file, password in PASSWORDS.items():
        url = load_settings(made / file).database_url.get_secret_value()
        assert urlsplit(url).password == roles[password]


PASSWORDS = {
    "service.env": "SERVICE_PASSWORD",
    "owner.env": "POSTGRES_PASSWORD",
    "manager.env": "MANAGER_PASSWORD",
}


async def test_production_gives_no_password_to_a_postgres_without_tls(
    tmp_path: Path,
) -> None:
    patch = yaml.safe_load((FOLDER / "components/store-tls/manage.yaml").read_text())
    (container,) = patch["spec"]["containers"]
    told = {variable["name"]: variable["value"] for variable in container["env"]}
    told["PGSSLROOTCERT"] = str(new_authority(tmp_path, "authority").root)
    got_all: list[bytes] = []

    async def refuse_tls(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        got_all.append(await reader.read(8))
        writer.write(b"N")
        got_all.append(await reader.read())
        writer.close()

    async with await asyncio.start_server(refuse_tls, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        told["AUTHZ_DATABASE_URL"] = f"postgresql://a:hunter2@127.0.0.1:{port}/a"
        ended = await authz("migrate", cwd=tmp_path, env=told)
    assert ended.status != 0
    assert set(got_all) == {SSL_REQUEST, b""}
