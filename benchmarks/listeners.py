"""listener.yaml with parts of it left out, to see what these cost.

Nothing is added or rewritten: what stays is what production runs.
"""

from __future__ import annotations

from typing import Any

_MANAGER = "envoy.filters.network.http_connection_manager"
# gateway.lua, and the guard that lets nothing pass without it.
_SCRIPTS = ("envoy.filters.http.lua", "guard")
_KEY_CHECK = ("envoy.filters.http.ext_authz", "envoy.filters.http.router")
_ROUTE = {"match": {"prefix": "/"}, "route": {"cluster": "ollama", "timeout": "0s"}}
_HOST = {"name": "all", "domains": ["*"], "routes": [_ROUTE]}


def without_script(listener: dict[str, Any]) -> None:
    """Leave out gateway.lua and its guard."""
    manager = _manager(listener)["typed_config"]
    manager["http_filters"] = [
        part for part in manager["http_filters"] if part["name"] not in _SCRIPTS
    ]


def key_check_alone(listener: dict[str, Any]) -> None:
    """Leave out all but the check with the body, the router and one plain route."""
    manager = _manager(listener)
    config = manager["typed_config"]
    manager["typed_config"] = {
        "@type": config["@type"],
        "stat_prefix": config["stat_prefix"],
        "http_filters": [
            part for part in config["http_filters"] if part["name"] in _KEY_CHECK
        ],
        "route_config": {"virtual_hosts": [_HOST]},
    }
    listener["filter_chains"] = [{"filters": [manager]}]


def _manager(listener: dict[str, Any]) -> dict[str, Any]:
    filters: list[dict[str, Any]] = listener["filter_chains"][0]["filters"]
    return next(part for part in filters if part["name"] == _MANAGER)
