"""The image and docker-compose.yml, run: the flow of acceptance, and what holds them.

The stand-in plays Ollama. Images that cannot be had from their registries are named in
the variables of docker-compose.yml (PYTHON_IMAGE, ENVOY_IMAGE, …).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest

from authz.local.stack import free_port
from tests import secrecy
from tests.acceptance.test_auth_flow import *  # noqa: F403 - the same flow, from here
from tests.acceptance.test_auth_flow import CHAT, bearer
from tests.failing import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
PYTHON_IMAGE = os.environ.get("PYTHON_IMAGE", "python:3.12-slim-bookworm")
WELL_AGAIN_S = 60.0  # Docker waits longer from one restart to the next
STANDIN_DOCKERFILE = """
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
COPY pins.txt /tmp/
RUN python -m venv /opt/venv \\
 && /opt/venv/bin/pip install --no-cache-dir -c /tmp/pins.txt aiohttp pydantic
COPY authz /opt/standin/authz
COPY ollama /usr/local/bin/ollama
WORKDIR /opt/standin
ENTRYPOINT ["/opt/venv/bin/python", "-m", "authz.local.standin", "127.0.0.1:11434"]
"""
# In place of `ollama list`, which asks the server, too (here for what does not count
# as received); and how tests ask the stand-in.
OLLAMA = """#!/usr/bin/env python3
import sys, urllib.request
calls = ["GET /_standin/requests"] if sys.argv[1:] == ["list"] else sys.argv[1:]
for method, path in map(str.split, calls):
    url = "http://127.0.0.1:11434" + path
    with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
        print(answer.read().decode())
"""


def why_not() -> str:
    """Say what is missing to run compose here."""
    if shutil.which("docker") is None:
        return "there is no docker on PATH"
    for question in (["docker", "version"], ["docker", "compose", "version"]):
        if subprocess.run(question, capture_output=True, check=False).returncode:
            return f"{' '.join(question)} fails"
    return ""


MISSING = why_not()
pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


def run(*command: str, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return what it printed; it must succeed."""
    ended = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    secrecy.errors_printed.append(ended.stderr.encode())
    assert ended.returncode == 0, f"{command}: {ended.stderr[-4000:]}"
    return ended.stdout


@dataclass(frozen=True, slots=True)
class Stack:
    """A project of compose and what is set for it."""

    project: str
    env: Mapping[str, str]

    def compose(self, *words: str) -> str:
        """Run `docker compose`; nobody's .env is read."""
        own = ("--project-name", self.project, "--env-file", os.devnull)
        return run("docker", "compose", *own, *words, env=self.env)

    def ask(self, service: str, *command: str) -> str:
        """Run a command inside a service."""
        return self.compose("exec", "-T", service, *command)

    def manage(self, *words: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Run one of the commands for people."""
        told = self.compose("run", "--rm", "-T", "manage", *words, "--json")
        return json.loads(told)

    def containers(self) -> dict[str, dict[str, Any]]:
        """Return what Docker knows of each, by service."""
        ids = self.compose("ps", "--all", "--quiet").split()
        found = json.loads(run("docker", "inspect", *ids))
        service = "com.docker.compose.service"
        return {each["Config"]["Labels"][service]: each for each in found}


@dataclass(frozen=True, slots=True)
class Standin:
    """The stand-in, asked from within its container: nothing else can."""

    stack: Stack

    async def received(self) -> list[dict[str, Any]]:
        """Return what it got since the last reset."""
        got = self.stack.ask("ollama", "ollama", "GET /_standin/requests")
        return list(json.loads(got))

    async def reset(self) -> None:
        """Forget what it got and behave again."""
        calls = ("DELETE /_standin/behaviour", "DELETE /_standin/requests")
        self.stack.ask("ollama", "ollama", *calls)


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the flow of acceptance needs of a gateway."""

    stack: Stack
    upstream: Standin
    url: str
    ids: dict[str, str] = field(default_factory=dict)

    async def new_key(
        self,
        models: str = "*",
        *,
        scopes: Sequence[str] = ("inference", "read"),
        options: Sequence[str] = (),
    ) -> str:
        """Issue a key as operators do."""
        given = ("--models", models, "--scopes", ",".join(scopes), *options)
        key = self.stack.manage(
            "keys", "create", "--name", f"key {uuid4().hex}", *given
        )
        self.ids[key["key"]] = key["id"]
        return str(key["key"])

    async def revoke(self, raw_key: str) -> None:
        """Revoke a key as operators do."""
        self.stack.manage("keys", "revoke", self.ids[raw_key])

    async def status(self, raw_key: str) -> int:
        """Ask for an answer."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            try:
                headers = bearer(raw_key)
                answer = await client.post("/api/chat", json=CHAT, headers=headers)
            except httpx.TransportError:
                return 0
        return answer.status_code


def prepare_standin(folder: Path) -> None:
    """Write what an image is built from that can stand in Ollama's place."""
    shutil.copytree(ROOT / "authz", folder / "authz")
    pins = (ROOT / "requirements/local.txt").read_text()
    pinned = re.findall(r"^[a-z].*?==[^\\\n]*", pins, re.MULTILINE)
    (folder / "pins.txt").write_text("\n".join(pinned))
    (folder / "Dockerfile").write_text(STANDIN_DOCKERFILE)
    (folder / "ollama").write_text(OLLAMA)
    (folder / "ollama").chmod(0o755)


@contextmanager
def images(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """Build both images of ours, name them, and remove them."""
    authz, standin = f"{name}:authz", f"{name}:standin"
    with built(ROOT, authz):
        prepare_standin(folder)
        with built(folder, standin):
            yield {"AUTHZ_IMAGE": authz, "OLLAMA_IMAGE": standin}


@contextmanager
def built(folder: Path, image: str) -> Iterator[None]:
    given = ("--build-arg", f"PYTHON_IMAGE={PYTHON_IMAGE}", "--tag", image)
    run("docker", "build", "--quiet", *given, str(folder))
    try:
        yield
    finally:
        run("docker", "image", "rm", image)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole of docker-compose.yml, ready, with secrets and names of its own."""
    project = f"authz-test-{uuid4().hex[:8]}"
    logs = tmp_path_factory.mktemp("compose")
    pepper = logs / "pepper"
    pepper.write_text(uuid4().hex)
    pepper.chmod(0o444)
    secrets = {
        name: uuid4().hex
        for name in (
            *("POSTGRES_PASSWORD", "SERVICE_PASSWORD", "MANAGER_PASSWORD"),
            "AUTHZ_CACHE_SECRET",
        )
    }
    secrecy.secrets.update(secret.encode() for secret in secrets.values())
    secrecy.secrets.add(pepper.read_bytes())
    with images(tmp_path_factory.mktemp("standin"), project) as ours:
        env = {"GATEWAY_PORT": str(free_port()), "PEPPER_FILE": str(pepper)}
        stack = Stack(project, env | secrets | ours)
        try:
            stack.compose("up", "--wait", "--quiet-pull")
            yield stack
        finally:
            (logs / "compose.log").write_text(stack.compose("logs", "--no-color"))
            stack.compose("--profile", "manage", "down", "--volumes", "--timeout", "5")


@pytest.fixture(scope="module")
def composed(stack: Stack) -> Gateway:
    port = stack.env["GATEWAY_PORT"]
    return Gateway(stack, Standin(stack), f"http://127.0.0.1:{port}")


@pytest.fixture
async def gateway(composed: Gateway) -> Gateway:
    """In place of the gateway that the flow of acceptance otherwise meets."""
    await composed.upstream.reset()
    return composed


def test_each_container_is_held_as_the_file_says(stack: Stack) -> None:
    for name, container in stack.containers().items():
        host = container["HostConfig"]
        assert host["CapDrop"] == ["ALL"], name
        assert not host["Privileged"]
        assert host["ReadonlyRootfs"], name
        if container["State"]["Running"]:
            status = stack.ask(name, "cat", "/proc/1/status")
            held = dict(line.split(":\t", 1) for line in status.splitlines())
            assert int(held["CapEff"], 16) == int(held["CapBnd"], 16) == 0, name
            assert held["NoNewPrivs"] == "1", name
            assert (held["Uid"].split()[1] == "0") == (name == "ollama"), name


def test_there_is_no_compiler_and_no_secret_in_the_image(stack: Stack) -> None:
    image = stack.env["AUTHZ_IMAGE"]
    look = "for each in cc gcc c++ clang ld make; do command -v $each; done; true"
    own = ("docker", "run", "--rm", "--network", "none", "--entrypoint", "sh")
    assert run(*own, image, "-c", look) == ""
    history = run("docker", "history", "--no-trunc", image)
    known = history + run("docker", "image", "inspect", image)
    assert not list(secrecy.leaks(known.encode()))
    assert not re.search("PASSWORD|SECRET|DATABASE_URL", known)


def test_the_image_says_its_version(stack: Stack) -> None:
    image = stack.env["AUTHZ_IMAGE"]
    said = run("docker", "run", "--rm", "--network", "none", image, "--version")
    (found,) = json.loads(run("docker", "image", "inspect", image))
    version = found["Config"]["Labels"]["org.opencontainers.image.version"]
    assert said.split()[-1] == version


def test_ollama_cannot_be_reached_around_envoy(stack: Stack) -> None:
    """From the network in which Envoy is, where Envoy's own port can be reached."""
    tried = (
        "import socket\n"
        "socket.create_connection(('pod', 8080), 5)\n"
        "try: socket.create_connection(('pod', 11434), 5)\n"
        "except ConnectionRefusedError: print('refused')"
    )
    network = ("--network", f"{stack.project}_front", "--entrypoint", "python")
    image = stack.env["AUTHZ_IMAGE"]
    assert run("docker", "run", "--rm", *network, image, "-c", tried) == "refused\n"
    published = {
        (name, port)
        for name, container in stack.containers().items()
        for port, bound in container["NetworkSettings"]["Ports"].items()
        if bound
    }
    assert published == {("pod", "8080/tcp")}


def test_nothing_stands_open_where_authz_runs(stack: Stack) -> None:
    """Among other things: the service's role may not change keys."""
    said = stack.ask("authz", "authz", "healthcheck", "--deep")
    lines = said.splitlines()
    assert lines[-1] == "ready"
    assert {line.split()[0] for line in lines[:-1]} == {"ok"}, said


async def test_bodies_that_take_a_process_of_their_own_are_read(
    gateway: Gateway,
) -> None:
    """Which has to find the package by itself."""
    key = await gateway.new_key()
    many = CHAT | {"messages": [{"role": "user", "content": "Hello"}] * 20_000}
    async with httpx.AsyncClient(base_url=gateway.url, timeout=WELL_AGAIN_S) as client:
        answer = await client.post("/api/chat", json=many, headers=bearer(key))
    assert answer.status_code == 200


async def test_limits_are_counted_in_redis(gateway: Gateway) -> None:
    key = await gateway.new_key(options=("--rpm", "1000"))
    redis = ("redis-cli", "--raw", "keys", "authz:limits:*")

    async def counted() -> bool:  # a busy machine may be too slow for it at first
        assert await gateway.status(key) == 200
        return gateway.ids[key] in gateway.stack.ask("redis", *redis)

    await until(counted, WELL_AGAIN_S)


async def test_the_gateway_comes_back_when_a_part_of_it_ends(gateway: Gateway) -> None:
    key = await gateway.new_key()

    async def well() -> bool:
        return await gateway.status(key) == 200

    for service in ("envoy", "ollama", "authz", "redis", "postgres"):
        began = gateway.stack.containers()[service]["State"]["StartedAt"]
        # From within: what Docker itself ends, it does not start again.
        gateway.stack.ask(service, "sh", "-c", "kill -INT 1")

        async def again(service: str = service, before: str = began) -> bool:
            state = gateway.stack.containers()[service]["State"]
            return bool(state["Running"] and state["StartedAt"] != before)

        await until(again, WELL_AGAIN_S)
        await until(well, WELL_AGAIN_S)


async def test_up_once_more_changes_nothing(gateway: Gateway) -> None:
    key = await gateway.new_key()
    before = {n: c["Id"] for n, c in gateway.stack.containers().items()}
    gateway.stack.compose("up", "--wait")
    assert {n: c["Id"] for n, c in gateway.stack.containers().items()} == before
    assert await gateway.status(key) == 200


def test_all_end_in_good_order_when_they_are_stopped(stack: Stack) -> None:
    """The last: nothing runs after it."""
    stack.compose("stop")
    ended = {n: c["State"]["ExitCode"] for n, c in stack.containers().items()}
    assert {n: ended[n] for n in ("authz", "envoy", "redis", "postgres")} == {
        "authz": 0,
        "envoy": 0,
        "redis": 0,
        "postgres": 0,
    }
