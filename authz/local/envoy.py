"""Envoy with the files of envoy/, moved to other places; nothing else is changed."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from authz.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Where the files say that things are.
_CONFIG = "/etc/envoy"
_RUN = "/run/authz"

_FILES = ("envoy.yaml", "listener.yaml", "routes.yaml", "clusters.yaml", "tls.yaml")
_SCRIPT = "gateway.lua"

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Places:
    """Where this Envoy finds its surroundings; port 0 takes a free one.

    ``upstream`` is an address or the path of a unix socket.
    """

    directory: Path
    run: Path
    listen: Address
    metrics: Address
    upstream: Address | Path
    workers: int = 1


def envoy_binary() -> Path:
    """Find Envoy: the wheel's, else the one on PATH. Raises ConfigError."""
    wheel = find_spec("envoy")
    if wheel and wheel.origin:
        binary = Path(wheel.origin).parent / "_bin" / "envoy"
        if binary.exists():
            return binary
    on_path = shutil.which("envoy", path=_path_without_wheel())
    if on_path is None:
        msg = "no Envoy: this platform has no wheel of it and none is on PATH"
        raise ConfigError(msg)
    return Path(on_path)


def envoy_command(places: Places) -> Sequence[str]:
    """Return the command that runs Envoy on the files of `write_config`."""
    return (
        str(envoy_binary()),
        *("--config-path", str(places.directory / "envoy.yaml")),
        *("--concurrency", "1"),
        "--disable-hot-restart",
        # A misspelt field of a reloaded file would otherwise be left out silently.
        "--reject-unknown-dynamic-fields",
        *("--drain-time-s", "3600"),
        *("--file-flush-interval-msec", "1000"),
        *("--log-level", "warning"),
    )


def write_config(places: Places) -> None:
    """Write the moved files into ``places.directory``."""
    places.directory.mkdir(mode=0o700, exist_ok=True)
    sources = config_sources()
    shutil.copy(sources / _SCRIPT, places.directory)
    for name in _FILES:
        config = _moved(yaml.safe_load((sources / name).read_text()), places)
        if name in _ADJUST:
            _ADJUST[name](config, places)
        (places.directory / name).write_text(yaml.safe_dump(config, sort_keys=False))


def config_sources() -> Path:
    """Return their folder: beside the package in a checkout, inside it in a wheel."""
    package = Path(str(resources.files("authz")))
    checkout = package.parent / "envoy"
    return checkout if (checkout / _SCRIPT).exists() else package / "envoy_config"


def _moved(value: Any, places: Places) -> Any:  # noqa: ANN401 - whatever YAML holds
    match value:
        case dict():
            return {name: _moved(member, places) for name, member in value.items()}
        case list():
            return [_moved(member, places) for member in value]
        case str() if value == _CONFIG or value.startswith(f"{_CONFIG}/"):
            return str(places.directory) + value.removeprefix(_CONFIG)
        case str() if value.startswith(f"{_RUN}/"):
            return str(places.run) + value.removeprefix(_RUN)
        case _:
            return value


def _adjust_bootstrap(config: Any, places: Places) -> None:  # noqa: ANN401
    listener = config["static_resources"]["listeners"][0]
    listener["address"] = _address(places.metrics)


def _adjust_listener(config: Any, places: Places) -> None:  # noqa: ANN401
    config["resources"][0]["address"] = _address(places.listen)


def _adjust_clusters(config: Any, places: Places) -> None:  # noqa: ANN401
    clusters = {cluster["name"]: cluster for cluster in config["resources"]}
    sockets = [places.run / f"authz-{worker}.sock" for worker in range(places.workers)]
    for name in ("authz", "authz-log"):
        _set_endpoints(clusters[name], [_address(socket) for socket in sockets])
    ollama = clusters["ollama"]
    if isinstance(places.upstream, Path):
        ollama["type"] = "STATIC"
    _set_endpoints(ollama, [_address(places.upstream)])


_ADJUST = {
    "envoy.yaml": _adjust_bootstrap,
    "listener.yaml": _adjust_listener,
    "clusters.yaml": _adjust_clusters,
}


def _set_endpoints(cluster: Any, addresses: Sequence[object]) -> None:  # noqa: ANN401
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": address}} for address in addresses
    ]


def _address(place: Address | Path) -> dict[str, object]:
    if isinstance(place, Path):
        return {"pipe": {"path": str(place)}}
    host, port = place
    return {"socket_address": {"address": host, "port_value": port}}


def _path_without_wheel() -> str:
    """PATH without the wheel's own script, which cannot work without its binary."""
    scripts = str(Path(sys.executable).parent)
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if folder != scripts)
