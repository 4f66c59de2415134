"""What the image and docker-compose.yml promise, as far as reading them can tell.

test_compose_engine.py runs them, where a Docker engine answers.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from authz.cli import cli
from authz.config import Settings
from authz.local.envoy import Places, envoy_command
from tests.manifests import moved

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ENVOY = yaml.safe_load((ROOT / "envoy/envoy.yaml").read_text())
CLUSTERS = yaml.safe_load((ROOT / "envoy/clusters.yaml").read_text())
AUTHZ, AUTHZ_LOG, OLLAMA = CLUSTERS["resources"]
README = (ROOT / "README.md").read_text()
DEPLOYING = README.partition("\n## Deploying\n")[2].partition("\n## ")[0]

UID = "10001:10001"
ONCE = {"roles", "migrate", "grants"}
OF_AUTHZ = {"authz", "manage", "migrate", "grants"}
LASTING = SERVICES.keys() - ONCE - {"manage"}
# An image of others that runs as root, without what makes root strong.
ROOT_INSIDE = {"ollama"}
# Without what is installed beside the tests.
BARE_PYTHON = str(Path(sys.base_prefix) / "bin/python3")
MIB = {"k": 1 / 1024, "m": 1, "g": 1024}


def lines_of(dockerfile: str) -> list[str]:
    """Return the instructions, each in one line."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE)
    return re.sub(r"\\\n\s*", "", text).splitlines()


def instructions(name: str) -> list[str]:
    found = (line.partition(" ") for line in lines_of(DOCKERFILE))
    return [rest for word, _, rest in found if word == name]


def mib(size: str) -> float:
    return float(re.sub("b$", "", size)[:-1]) * MIB[re.sub("b$", "", size)[-1]]


def endpoint(cluster: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever YAML holds
    (locality,) = cluster["load_assignment"]["endpoints"]
    (host,) = locality["lb_endpoints"]
    return host["endpoint"]["address"]


def waits_for(service: str) -> set[str]:
    """Return all that is up, or done, before a service starts."""
    direct = SERVICES[service].get("depends_on", {})
    return set(direct).union(*map(waits_for, direct))


@pytest.mark.parametrize(
    "image", [*(service["image"] for service in SERVICES.values()), "PYTHON_IMAGE"]
)
def test_every_image_is_of_a_version_and_can_be_replaced(image: str) -> None:
    if image == "PYTHON_IMAGE":
        (image,) = [a for a in instructions("ARG") if a.startswith("PYTHON_IMAGE=")]
        image = f"${{{image.replace('=', ':-')}}}"
        assert image in TEXT
    found = re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[a-z/]+:(?P<tag>[\w.-]+)\}", image)
    assert found, image
    assert re.search(r"\d+\.\d+", found["tag"])


def test_the_image_is_of_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    versions = {a for a in instructions("ARG") if a.startswith("VERSION")}
    assert versions == {f"VERSION={version}"}
    assert f":-authz:{version}}}" in SERVICES["authz"]["image"]
    (labels,) = instructions("LABEL")
    for name, value in {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
        "version": "${VERSION}",
    }.items():
        assert f'org.opencontainers.image.{name}="{value}"' in labels


def test_only_the_gateway_is_published_and_to_this_machine_alone() -> None:
    published = {n: s["ports"] for n, s in SERVICES.items() if "ports" in s}
    assert published == {
        "pod": ["${GATEWAY_ADDRESS:-127.0.0.1}:${GATEWAY_PORT:-8080}:8080"]
    }
    assert not [n for n, s in SERVICES.items() if s.get("network_mode") == "host"]


def test_ollama_is_reached_through_envoy_alone_and_has_no_cloud() -> None:
    ollama = SERVICES["ollama"]
    in_pod = {n for n, s in SERVICES.items() if s.get("network_mode") == "service:pod"}
    assert in_pod == {"envoy", "ollama"}
    address = endpoint(OLLAMA)["socket_address"]
    assert address["address"] == "127.0.0.1"
    assert ollama["environment"] == {
        "OLLAMA_HOST": f"127.0.0.1:{address['port_value']}",
        "OLLAMA_NO_CLOUD": "1",
    }


def test_the_stores_are_in_a_network_of_authz_alone() -> None:
    assert COMPOSE["networks"]["stores"] == {"internal": True}
    inside = {n for n, s in SERVICES.items() if "stores" in s.get("networks", [])}
    assert inside == OF_AUTHZ | {"roles", "postgres", "redis"}
    for name in inside:
        assert SERVICES[name]["networks"] == ["stores"]


def test_nothing_of_ours_is_root_and_nothing_has_what_makes_root_strong() -> None:
    assert instructions("USER") == [UID]
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"cap_add", "privileged", "devices", "pid", "ipc"}
        user = UID if name in OF_AUTHZ else service.get("user", "root")
        assert (user == "root") == (name in ROOT_INSIDE), name
        assert service.get("user") is None or name not in OF_AUTHZ


def test_what_runs_cannot_be_changed_and_cannot_take_all_memory() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["pids_limit"], name
        if name != "ollama":  # its memory is by its models
            assert 0 < mib(service["mem_limit"]) <= 2048, name


def test_ollama_can_write_where_it_keeps_what_it_has() -> None:
    ollama = SERVICES["ollama"]
    assert ollama["volumes"] == ["models:/root/.ollama"]
    assert ollama["tmpfs"] == ["/tmp"]  # noqa: S108 - in its container


def test_nothing_of_the_machine_is_open_to_containers_but_envoys_files() -> None:
    mounts = [m for service in SERVICES.values() for m in service.get("volumes", [])]
    from_outside = [m for m in mounts if m.partition(":")[0] not in COMPOSE["volumes"]]
    assert {*from_outside} == {"./envoy:/etc/envoy:ro"}


def test_envoy_and_authz_share_a_private_folder_under_one_uid() -> None:
    mount = "sockets:/run/authz"
    having = {n for n, s in SERVICES.items() if mount in s.get("volumes", [])}
    assert having == {"envoy", "authz"}
    assert str(Settings.model_fields["listen"].default) == "/run/authz"
    for cluster in (AUTHZ, AUTHZ_LOG):
        assert endpoint(cluster) == {"pipe": {"path": "/run/authz/authz-0.sock"}}
    assert ENVOY["admin"]["address"]["pipe"]["path"].startswith("/run/authz/")
    options = COMPOSE["volumes"]["sockets"]["driver_opts"]["o"].split(",")
    assert {"mode=0700", "uid=10001", "gid=10001"} <= set(options)
    assert SERVICES["envoy"]["user"] == UID


def test_each_waits_until_what_it_needs_is_there() -> None:
    assert waits_for("envoy") >= {"authz", "pod", "redis", "postgres", *ONCE}
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            condition = (
                "service_completed_successfully"
                if needed in ONCE
                else "service_started"
                if needed == "pod"
                else "service_healthy"
            )
            assert how == {"condition": condition}, (name, needed)
    assert waits_for("grants") == {"migrate", "roles", "postgres"}


def test_what_lasts_is_watched_and_comes_back_and_the_rest_is_done_once() -> None:
    for name in LASTING:
        assert SERVICES[name]["restart"] == "unless-stopped"
    for name in LASTING - {"pod", "authz"}:
        assert SERVICES[name]["healthcheck"]["test"]
    assert '"healthcheck"]' in DOCKERFILE
    for name in SERVICES.keys() - LASTING:
        assert SERVICES[name]["restart"] == "no"
        assert SERVICES[name]["healthcheck"] == {"disable": True}
    assert SERVICES["manage"]["profiles"]


def test_no_log_grows_without_end() -> None:
    for name, service in SERVICES.items():
        options = service["logging"]["options"]
        assert options.keys() == {"max-size", "max-file"}, name


def test_what_runs_once_and_what_health_asks_are_commands_that_there_are() -> None:
    commands = cli.list_commands(click.Context(cli))
    asked = {SERVICES[name]["command"][0] for name in ("migrate", "grants")}
    assert asked | {"healthcheck"} <= set(commands)


def test_each_role_has_a_password_of_its_own_and_none_is_written_down() -> None:
    """Required, without a default: whoever forgets one is told so."""
    passwords = set(re.findall(r"\$\{(\w+):\?", TEXT))
    assert passwords == {
        "POSTGRES_PASSWORD",
        "SERVICE_PASSWORD",
        "MANAGER_PASSWORD",
        "AUTHZ_CACHE_SECRET",
    }
    for name in passwords:
        assert set(re.findall(rf"\$\{{{name}[^}}]*\}}", TEXT)) == {
            f"${{{name}:?see Deploying in README.md}}"
        }
    urls = {n: SERVICES[n]["environment"]["AUTHZ_DATABASE_URL"] for n in OF_AUTHZ}
    users = {n: url.partition("//")[2].partition(":")[0] for n, url in urls.items()}
    assert users == {
        "authz": "authz_service",
        "manage": "authz_manager",
        "migrate": "authz",
        "grants": "authz",
    }


def test_the_readme_names_every_variable_that_must_be_set_and_can_be() -> None:
    for name in re.findall(r"\$\{(\w+):[?+-]", TEXT):
        assert re.search(rf"\b{name}\b", DEPLOYING), name


def test_the_settings_that_are_passed_on_are_settings() -> None:
    known = {f"AUTHZ_{name.upper()}" for name in Settings.model_fields}
    for name in OF_AUTHZ:
        assert SERVICES[name]["environment"].keys() <= known


def test_a_pepper_can_be_changed_while_keys_of_the_old_one_live() -> None:
    for name in ("authz", "manage"):
        told = SERVICES[name]["environment"]
        for variable, secret in (
            ("AUTHZ_KEY_PEPPER_FILE", "pepper"),
            ("AUTHZ_KEY_OLD_PEPPER_FILES", "old_pepper"),
        ):
            file = f"{secret.upper()}_FILE"
            assert told[variable] == f"${{{file}:+/run/secrets/{secret}}}"
            assert COMPOSE["secrets"][secret] == {"file": f"${{{file}:-/dev/null}}"}
            assert secret in SERVICES[name]["secrets"]


def test_the_image_has_the_command_authz_in_any_folder(tmp_path: Path) -> None:
    """Run as in the image: by the script that it writes, with nothing installed."""
    (writing,) = (line for line in instructions("RUN") if "bin/authz" in line)
    command = tmp_path / "authz"
    places = {"/opt/venv/bin/authz": str(command), "/opt/venv/bin/python": BARE_PYTHON}
    subprocess.run(["/bin/sh", "-c", moved(writing, places)], check=True)
    (env,) = (line for line in instructions("ENV") if "PYTHONPATH" in line)
    (app,) = re.findall(r"PYTHONPATH=(\S+)", env)
    assert f"authz {app}/authz" in instructions("COPY")
    found = os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))
    child = (BARE_PYTHON, "-P", "-c", "import authz")
    for program in ((str(command), "--version"), child):
        subprocess.run(program, cwd=tmp_path, env={"PYTHONPATH": found}, check=True)


def test_no_secret_and_no_tool_of_ours_gets_into_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    added = {line[1:] for line in ignored if line.startswith("!")}
    assert added == {"LICENSE", "authz", "requirements/service.txt"}
    copied = [c.split()[:-1] for c in instructions("COPY") if "--from" not in c]
    assert {source for sources in copied for source in sources} == added
    assert not re.search("(?i)password|secret|token", DOCKERFILE)


def test_the_private_key_of_the_door_is_not_checked_in_by_mistake() -> None:
    tls = yaml.safe_load((ROOT / "envoy/tls.yaml").read_text())
    (secret,) = tls["resources"]
    key = Path(secret["tls_certificate"]["private_key"]["filename"])
    (mounted,) = (m for m in SERVICES["envoy"]["volumes"] if ":/etc/envoy:" in m)
    here = mounted.partition(":")[0] / key.parent.relative_to("/etc/envoy")
    assert f"{here}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_wheel_has_envoys_files_and_no_key_that_lies_beside_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    listed = yaml.safe_load((ROOT / "envoy/kustomization.yaml").read_text())
    (files,) = (made["files"] for made in listed["configMapGenerator"])
    assert included == {f"envoy/{f}": f"authz/envoy_config/{f}" for f in files}


def test_what_runs_is_built_elsewhere_and_only_copied() -> None:
    last = lines_of(DOCKERFILE.rpartition("\nFROM ")[2])
    installing = [line for line in last if re.search(r"\b(pip|apt-get|apk)\b", line)]
    assert not installing
    assert "--require-hashes" in DOCKERFILE


def test_envoy_runs_with_the_options_that_the_tests_run_it_with() -> None:
    places = Places(Path("/etc/envoy"), Path("/run/authz"), ("", 0), ("", 0), ("", 0))
    envoy = SERVICES["envoy"]
    ours, tested = ([*envoy["entrypoint"], *envoy["command"]], envoy_command(places))
    several = ours.index("--concurrency")
    assert [*ours[1:several], "--concurrency", "1", *ours[several + 2 :]] == [
        *tested[1:]
    ]
    assert ours[several + 1] in {"1", "2"}


def test_envoy_refuses_requests_before_its_container_is_out_of_memory() -> None:
    (heap,) = (
        monitor["typed_config"]["max_heap_size_bytes"]
        for monitor in ENVOY["overload_manager"]["resource_monitors"]
        if monitor["name"].endswith("fixed_heap")
    )
    assert heap == 0.7 * mib(SERVICES["envoy"]["mem_limit"]) * 1024 * 1024


def test_redis_never_forgets_what_was_counted_to_make_room() -> None:
    redis = SERVICES["redis"]
    options = dict(zip(redis["command"][1::2], redis["command"][2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert mib(options["--maxmemory"]) * 2 <= mib(redis["mem_limit"])
