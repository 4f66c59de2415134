"""Envoy's own opinion: `--mode validate` on all files put together.

In that mode Envoy does not load what it would be given while it runs, so listeners,
routes and clusters are put into one bootstrap, in a private folder.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from authz.envoy_check.findings import Place, found_in_reading
from authz.envoy_check.source import line_of, parsed, plain, words
from authz.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import yaml

    from authz.envoy_check.findings import Finding

_DEADLINE_S = 30
_REASON = re.compile(
    r"error initializing configuration '[^']*': (.*?)(?=\n\[|\Z)", re.DOTALL
)
_SHORTEST_NAME = 6
# Without a bootstrap there is none; that is another finding.
_NODE = {"node": {"id": "any", "cluster": "any"}}
_KINDS = {
    "envoy.config.listener.v3.Listener": "listeners",
    "envoy.config.cluster.v3.Cluster": "clusters",
}
_ROUTES = "envoy.config.route.v3.RouteConfiguration"

ENVOY_REFUSES = found_in_reading(
    "envoy-refuses",
    why="It would not start with this, or go on with the files that it has.",
    mend="See Envoy's own words.",
)

Json = dict[str, Any]


def validate(binary: Path, contents: Mapping[str, bytes]) -> list[Finding]:
    """Return what Envoy has against files that could be read. Raises ConfigError."""
    roots = {name: parsed(name, content)[0] for name, content in contents.items()}
    files = {name: plain(root) for name, root in roots.items() if root}
    with tempfile.TemporaryDirectory(prefix="authz-check-") as folder:
        bootstrap = Path(folder) / "envoy.json"
        bootstrap.write_text(json.dumps(_assembled(files)))
        reason = _reason(binary, bootstrap)
    if reason is None:
        return []
    return [ENVOY_REFUSES.at(_place(reason, roots), f"Envoy says: {reason}")]


def _reason(binary: Path, bootstrap: Path) -> str | None:
    command = [str(binary), "--mode", "validate", "--disable-hot-restart"]
    command += ["--config-path", str(bootstrap), "--log-level", "critical"]
    try:
        done = subprocess.run(  # noqa: S603 - Envoy, with a file of ours
            command, capture_output=True, timeout=_DEADLINE_S, check=False, text=True
        )
    except OSError as error:
        msg = f"{binary} cannot be started: {error.strerror}"
        raise ConfigError(msg) from error
    except subprocess.TimeoutExpired:
        return f"nothing within {_DEADLINE_S} s"
    if done.returncode == 0:
        return None
    said = _REASON.search(done.stderr)
    return _without_dump(said[1] if said else done.stderr) or "nothing"


def _without_dump(reason: str) -> str:
    """Leave out what Envoy prints of the configuration, before or behind its reason."""
    if reason.startswith("goo.gle/"):
        reason = reason.rpartition("\n: ")[2]
    return reason.partition(': {"')[0].strip()


def _assembled(files: Mapping[str, Any]) -> Json:
    """Put what all files have into one bootstrap."""
    bootstrap: Json = {}
    tables: dict[str, Json] = {}
    own: dict[str, list[Json]] = {kind: [] for kind in _KINDS.values()}
    for content in files.values():
        if "resources" not in content:
            bootstrap = bootstrap or content
            continue
        for resource in content["resources"] or ():
            if isinstance(wrapped := resource.get("resource"), dict):
                resource = wrapped  # noqa: PLW2901 - as Envoy unwraps it
            kind = str(resource.pop("@type", "")).rpartition("/")[2]
            if kind == _ROUTES:
                tables[resource.get("name")] = resource
            elif kind in _KINDS:
                own[_KINDS[kind]].append(resource)
    static = bootstrap.get("static_resources") or {}
    merged = {name: [*(static.get(name) or []), *more] for name, more in own.items()}
    rest = {
        name: value for name, value in bootstrap.items() if name != "dynamic_resources"
    }
    folders = {Path(name).parent for name in files}
    whole = {**_NODE, **rest, "static_resources": {**static, **merged}}
    return dict(_adapted(whole, tables, folders))


def _adapted(value: Any, tables: Mapping[str, Json], folders: set[Path]) -> Any:  # noqa: ANN401 - whatever YAML holds
    """Fill in the routes, and lead to files that are here."""
    if isinstance(value, list):
        return [_adapted(item, tables, folders) for item in value]
    if not isinstance(value, dict):
        return value
    # Certificates need not be where a configuration is checked.
    if "transport_socket" in value and not _here(value["transport_socket"]):
        value = {
            name: each for name, each in value.items() if name != "transport_socket"
        }
    rds = value.get("rds")
    name = rds.get("route_config_name") if isinstance(rds, dict) else None
    if isinstance(name, str) and name in tables:
        value = {**value, "route_config": tables[name]}
        del value["rds"]
    if isinstance(file := value.get("filename"), str):
        return _source(file, folders)
    return {name: _adapted(each, tables, folders) for name, each in value.items()}


def _here(value: object) -> bool:
    """Whether all files that are named in this exist."""
    if isinstance(value, list):
        return all(_here(item) for item in value)
    if not isinstance(value, dict):
        return True
    named = [value[name] for name in ("filename", "path") if name in value]
    exist = all(isinstance(each, str) and Path(each).exists() for each in named)
    return exist and all(_here(each) for each in value.values())


def _source(file: str, folders: set[Path]) -> Json:
    """Lead to a file, here or beside those given; what is not here is empty."""
    near = [Path(file), *(folder / Path(file).name for folder in folders)]
    here = next((each.absolute() for each in near if each.is_file()), None)
    return {"filename": str(here)} if here else {"inline_string": "-- not here"}


def _place(reason: str, roots: Mapping[str, yaml.Node | None]) -> Place:
    """Return where something stands that the reason names; the longest is meant."""
    named = [
        (len(str(node.value)), Place(file, line_of(node)))
        for file, root in roots.items()
        for node in (words(root) if root else ())
        if len(str(node.value)) >= _SHORTEST_NAME and str(node.value) in reason
    ]
    longest = max((length for length, _ in named), default=0)
    places = [place for length, place in named if length == longest]
    return places[0] if places else Place(next(iter(roots)), 1)
