"""Files that change while Envoy runs: no stream ends, and what is wrong is refused."""

from __future__ import annotations

import sys
from asyncio import create_task
from contextlib import asynccontextmanager
from dataclasses import replace
from signal import SIGCONT, SIGSTOP
from subprocess import run as run_program
from typing import TYPE_CHECKING

import pytest
import yaml

from authz.cli.envoy_files import observations
from authz.cli.observation import State
from authz.local.stack import got
from tests.failing import until
from tests.gateway import own_gateway
from tests.live import WITHIN_S, Live, mount, put, stats
from tests.rows import UNAVAILABLE
from tests.upstream import raw_upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from tests.gateway import Stores

NAMES = ("listener", "routes", "clusters")
LONGER = b'{"model":"llama3.1","prompt":"%b"}' % (b"x" * 100)


def as_config_map(folder: Path) -> None:
    files = {file.name: file.read_text() for file in folder.iterdir()}
    mount(folder, files)


def as_it_is(folder: Path) -> None:
    assert not (folder / "..data").exists()


@asynccontextmanager
async def running(stores: Stores, logs: Path, *, mounted: bool) -> AsyncIterator[Live]:
    layout = as_config_map if mounted else as_it_is
    async with own_gateway(stores, logs, layout) as gateway:
        yield Live(gateway, await gateway.new_key())


@pytest.fixture(params=[False, True], ids=["moved", "mounted"])
async def live(
    request: pytest.FixtureRequest, stores: Stores, tmp_path: Path
) -> AsyncIterator[Live]:
    async with running(stores, tmp_path, mounted=request.param) as found:
        yield found


@pytest.fixture(scope="module")
async def alive(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Live]:
    """For tests that put back what they have changed."""
    logs = tmp_path_factory.mktemp("alive")
    async with running(stores, logs, mounted=False) as found:
        yield found


# --- What is right takes effect, and no stream ends -------------------------------


async def test_a_changed_route_holds_for_new_requests_and_drains_nothing(
    live: Live,
) -> None:
    changed = live.edited("routes.yaml", '"status":"ok"', '"status":"changed"')
    async with live.streaming():
        live.put(routes=changed)
        await until(lambda: shows(live, '{"status":"changed"}'), WITHIN_S)
        listeners = await stats(live.gateway.run, "^listener_manager")
        assert listeners["listener_manager.listener_modified"] == 0
        assert listeners["listener_manager.total_listeners_draining"] == 0


async def shows(live: Live, body: str) -> bool:
    return await live.healthz() == body


async def test_a_changed_limit_holds_for_new_requests_and_ends_no_stream(
    live: Live,
) -> None:
    changed = live.edited(
        "listener.yaml", "max_request_bytes: 16777216", "max_request_bytes: 100"
    )
    assert (await live.ask(LONGER)).status_code == 200
    async with live.streaming():
        live.put(listener=changed)

        async def bounded() -> bool:
            return (await live.ask(LONGER)).status_code == 413

        await until(bounded, WITHIN_S)
        assert (await live.ask()).status_code == 200


async def test_another_model_server_gets_new_requests_and_the_old_one_ends_its_streams(
    live: Live, tmp_path: Path
) -> None:
    before = live.gateway.upstream
    there = tmp_path / "other.sock"
    changed = live.edited("clusters.yaml", r"\S+/upstream\.sock", str(there))
    async with raw_upstream(there) as other, live.streaming():
        live.put(clusters=changed)

        async def arrives() -> bool:
            assert (await live.ask()).status_code == 200
            return bool(other.received)

        await until(arrives, WITHIN_S)
        old, new = len(before.received), len(other.received)
        assert (await live.ask()).status_code == 200
        assert (len(before.received), len(other.received)) == (old, new + 1)


async def test_other_workers_are_asked_and_what_runs_is_counted_once(
    stores: Stores, tmp_path: Path
) -> None:
    two = replace(stores, settings={**stores.settings, "AUTHZ_WORKERS": "2"})
    async with running(two, tmp_path, mounted=False) as live:
        changed = live.text("clusters.yaml").replace("authz-0.sock", "authz-1.sock")
        before = await live.count("clusters.yaml", "success")
        async with live.streaming():
            live.put(clusters=changed)
            # What Envoy tells the first worker just then may be lost (see the file).
            await live.until_taken("clusters.yaml", before)

            async def second_is_asked() -> bool:
                assert (await live.ask()).status_code == 200
                return await asked(live, "authz-1.sock")

            await until(second_is_asked, WITHIN_S)
        sent = len(live.gateway.upstream.received)
        await live.until_counted(sent)


async def test_a_check_under_way_when_authz_changes_is_a_503_to_be_tried_again(
    stores: Stores, tmp_path: Path
) -> None:
    """And not a wait for whoever was asked before."""

    def wait_longer(folder: Path) -> None:
        listener = folder / "listener.yaml"
        text = listener.read_text()
        listener.write_text(text.replace("timeout: 2s\n", "timeout: 600s\n"))

    async with own_gateway(stores, tmp_path, wait_longer) as gateway:
        live = Live(gateway, await gateway.new_key())
        clusters = yaml.safe_load(live.text("clusters.yaml"))
        clusters["resources"][0]["connect_timeout"] = "1s"
        async with live.streaming():
            gateway.authz.process.send_signal(SIGSTOP)
            try:
                asking = create_task(live.ask())
                await until(lambda: is_asked(live), WITHIN_S)
                live.put(clusters=yaml.safe_dump(clusters))
                answer = await asking
            finally:
                gateway.authz.process.send_signal(SIGCONT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            UNAVAILABLE.status,
            UNAVAILABLE.code,
        )
        assert answer.headers["retry-after"] == UNAVAILABLE.headers["retry-after"]
        assert (await live.ask()).status_code == 200


async def is_asked(live: Live) -> bool:
    name = "cluster.authz.upstream_rq_active"
    return (await stats(live.gateway.run, f"^{name}$"))[name] == 1


async def asked(live: Live, socket: str) -> bool:
    async with got(
        live.gateway.run / "admin.sock", "/clusters?format=json"
    ) as response:
        clusters = (await response.json(content_type=None))["cluster_statuses"]
    hosts = [
        host
        for cluster in clusters
        if cluster["name"] == "authz"
        for host in cluster["host_statuses"]
        if host["address"]["pipe"]["path"].endswith(socket)
    ]
    totals = [
        int(stat.get("value", 0))
        for host in hosts
        for stat in host["stats"]
        if stat["name"] == "rq_success"
    ]
    return bool(totals and totals[0])


async def test_a_route_and_the_cluster_that_it_names_may_come_together(
    live: Live, tmp_path: Path
) -> None:
    there = tmp_path / "second.sock"
    clusters = yaml.safe_load(live.text("clusters.yaml"))
    text = yaml.safe_dump(clusters["resources"][-1]).replace("ollama", "second")
    second = yaml.safe_load(text)
    endpoint = second["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"] = {"pipe": {"path": str(there)}}
    clusters["resources"].append(second)
    routes = live.text("routes.yaml").replace("cluster: ollama", "cluster: second")
    async with raw_upstream(there) as other, live.streaming():
        live.put(routes=routes, clusters=yaml.safe_dump(clusters))

        async def arrives() -> bool:
            await live.ask()
            return bool(other.received)

        await until(arrives, WITHIN_S)
        assert await live.refused("routes.yaml") == 0


async def test_of_edits_that_follow_quickly_the_last_one_holds(live: Live) -> None:
    texts = [
        live.edited("routes.yaml", '"status":"ok"', f'"status":"{number}"')
        for number in range(20)
    ]
    async with live.streaming():
        for text in texts:
            live.put(routes=text)
        await until(lambda: shows(live, '{"status":"19"}'), WITHIN_S)
        assert await live.served() == State.OK
    assert await shows(live, '{"status":"19"}')


# --- What is wrong is refused, said, and changes nothing --------------------------

WRONG: Mapping[str, Callable[[str], str]] = {
    "broken YAML": lambda text: f"{text}\n  - [",
    "empty": lambda _: "",
    "half of it": lambda text: text[: text.index("type.googleapis") + 30],
    "unknown field": lambda text: text.replace("  name: ", "  nmae: a\n  name: ", 1),
    "wrong value": lambda text: text.replace("  name: ", "  name: [a]\n  nmae: ", 1),
    "no such type": lambda text: text.replace("googleapis.com/envoy", "x.com/y", 1),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_file_is_refused_and_said_while_the_old_one_serves(
    alive: Live, name: str, wrong: str
) -> None:
    file = f"{name}.yaml"
    good = alive.text(file)
    refused = await alive.refused(file)
    async with alive.streaming():
        alive.put(**{name: WRONG[wrong](good)})
        await alive.until_refused(file, refused)
        assert (await alive.ask()).status_code == 200
        assert await shows(alive, '{"status":"ok"}')
        told = await alive.said()
        assert (told.state, file in told.text) == (State.OPEN, True)
        taken = await alive.count(file, "success")
        alive.put(**{name: good})
        await alive.until_taken(file, taken)
        await alive.until_served()
    assert (await alive.ask()).status_code == 200
    assert "Filesystem config update" in (alive.gateway.logs / "envoy.log").read_text()


@pytest.mark.parametrize("name", ["routes", "clusters"])
@pytest.mark.parametrize("nothing", ["resources: []\n", "{}\n"])
async def test_a_file_that_holds_nothing_is_taken_and_said(
    alive: Live, name: str, nothing: str
) -> None:
    file = f"{name}.yaml"
    good, taken = alive.text(file), await alive.count(file, "success")
    alive.put(**{name: nothing})
    await alive.until_taken(file, taken)
    told = await alive.said()
    assert (told.state, f"{file} holds nothing" in told.text) == (State.OPEN, True)
    taken = await alive.count(file, "success")
    alive.put(**{name: good})
    await alive.until_taken(file, taken)
    await alive.until_served()


async def test_a_file_that_is_gone_goes_on_serving_and_is_missed(alive: Live) -> None:
    good = alive.text("routes.yaml")
    refused = await alive.refused("routes.yaml")
    async with alive.streaming():
        (alive.folder / "routes.yaml").unlink()
        assert await alive.served() == State.OPEN
        alive.put(clusters=alive.text("clusters.yaml"))
        await alive.until_refused("routes.yaml", refused)
        assert (await alive.ask()).status_code == 200
        taken = await alive.count("routes.yaml", "success")
        alive.put(routes=good)
        await alive.until_taken("routes.yaml", taken)
    await alive.until_served()


async def test_a_file_that_is_written_in_place_is_not_read_but_noticed(
    alive: Live,
) -> None:
    good = alive.text("routes.yaml")
    tried = await alive.count("routes.yaml", "attempt")
    (alive.folder / "routes.yaml").write_text(good[: len(good) // 2])
    assert await alive.served() == State.OPEN
    assert await alive.count("routes.yaml", "attempt") == tried
    assert (await alive.ask()).status_code == 200
    taken = await alive.count("routes.yaml", "success")
    alive.put(routes=good)
    await alive.until_taken("routes.yaml", taken)
    await alive.until_served()


async def test_a_config_map_with_a_wrong_file_is_taken_but_for_that_file(
    stores: Stores, tmp_path: Path
) -> None:
    async with running(stores, tmp_path, mounted=True) as live:
        refused = await live.refused("clusters.yaml")
        changed = live.edited("routes.yaml", '"status":"ok"', '"status":"changed"')
        good = live.text("clusters.yaml")
        async with live.streaming():
            live.put(routes=changed, clusters="resources: [")
            await live.until_refused("clusters.yaml", refused)
            await until(lambda: shows(live, '{"status":"changed"}'), WITHIN_S)
            assert (await live.ask()).status_code == 200
            assert await live.served() == State.OPEN
            taken = await live.count("clusters.yaml", "success")
            live.put(clusters=good)
            await live.until_taken("clusters.yaml", taken)
            assert await live.served() == State.OK


async def test_a_wrong_cluster_is_refused_and_said_while_the_others_change(
    alive: Live, tmp_path: Path
) -> None:
    good = alive.text("clusters.yaml")
    refused = await alive.refused("clusters.yaml")
    there = tmp_path / "other.sock"
    clusters = yaml.safe_load(good)
    authz, _, ollama = clusters["resources"]
    authz["transport_socket"] = NO_SUCH_AUTHORITY
    endpoint = ollama["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"] = {"pipe": {"path": str(there)}}
    async with raw_upstream(there) as other, alive.streaming():
        alive.put(clusters=yaml.safe_dump(clusters))
        await alive.until_refused("clusters.yaml", refused)
        assert (await alive.ask()).status_code == 200
        assert len(other.received) == 1
        assert await alive.served() == State.OPEN
        taken = await alive.count("clusters.yaml", "success")
        alive.put(clusters=good)
        await alive.until_taken("clusters.yaml", taken)


NO_SUCH_AUTHORITY = {
    "name": "envoy.transport_sockets.tls",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions"
        ".transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "validation_context": {"trusted_ca": {"filename": "/nowhere/ca.crt"}}
        },
    },
}


async def test_the_probe_that_kubernetes_runs_bears_a_refused_file(alive: Live) -> None:
    """Nothing is restarted for it, nor taken out: the old one serves."""
    good = alive.text("listener.yaml")
    refused = await alive.refused("listener.yaml")
    put(alive.folder / "listener.yaml", "resources: [")
    await alive.until_refused("listener.yaml", refused)
    plain, deep = healthcheck(alive), healthcheck(alive, "--deep")
    taken = await alive.count("listener.yaml", "success")
    put(alive.folder / "listener.yaml", good)
    await alive.until_taken("listener.yaml", taken)
    assert plain == (0, "ready\n")
    status, output = deep
    (line,) = [line for line in output.splitlines() if "listener.yaml" in line]
    assert (status, line.split()[0]) == (1, State.OPEN)


def healthcheck(live: Live, *options: str) -> tuple[int, str]:
    settings = {
        **live.gateway.settings,
        "AUTHZ_METRICS_LISTEN": f"127.0.0.1:{live.gateway.metrics_port}",
    }
    command = (sys.executable, "-m", "authz", "healthcheck", *options)
    done = run_program(
        command, env=settings, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", ["routes", "clusters"])
async def test_an_envoy_that_starts_with_a_wrong_file_lets_nothing_through(
    stores: Stores, tmp_path: Path, name: str
) -> None:
    good: list[str] = []

    def break_it(folder: Path) -> None:
        file = folder / f"{name}.yaml"
        good.append(file.read_text())
        file.write_text("resources: [")

    async with own_gateway(stores, tmp_path, break_it) as gateway:
        live = Live(gateway, await gateway.new_key())
        assert (await live.ask()).status_code in {400, 503}
        assert live.gateway.upstream.received == []
        assert await live.served() == State.OPEN
        live.put(**{name: good[0]})
        await live.until_taken(f"{name}.yaml", 0)
        assert (await live.ask()).status_code == 200
        assert await live.served() == State.OK


async def test_where_the_files_are_not_seen_refusals_are_all_that_is_said(
    stores: Stores, tmp_path: Path
) -> None:
    async with running(stores, tmp_path, mounted=False) as live:
        hidden = live.folder.with_name("hidden")
        live.folder.rename(hidden)
        assert await live.served() == State.OK
        put(hidden / "routes.yaml", "resources: [")
        await live.until_refused("routes.yaml", 0)
        found = await observations(live.gateway.run / "admin.sock")
        assert {each.state for each in found} == {State.UNKNOWN}
        hidden.rename(live.folder)


async def test_where_no_envoy_is_seen_its_files_are_unknown(tmp_path: Path) -> None:
    (found,) = await observations(tmp_path / "admin.sock")
    assert found.state == State.UNKNOWN
    assert str(tmp_path) in found.text
