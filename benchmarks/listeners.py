"""listener.yaml as benchmarks need it: parts left out, to see what these cost.

Nothing is added but Envoy's own list of keys; what stays is what production runs. All
load comes from one address, so its rate is set too high to be reached, or the senders
are believed to be gateways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_MANAGER = "envoy.filters.network.http_connection_manager"
# gateway.lua, and the guard that lets nothing pass without it.
_SCRIPTS = ("envoy.filters.http.lua", "guard")
_ADDRESSES = "envoy.filters.http.local_ratelimit"
_NEVER_REACHED = 1_000_000_000
_KEY_CHECK = ("envoy.filters.http.ext_authz", "envoy.filters.http.router")
_ROUTE = {"match": {"prefix": "/"}, "route": {"cluster": "ollama", "timeout": "0s"}}
_HOST = {"name": "all", "domains": ["*"], "routes": [_ROUTE]}


def unbounded(listener: dict[str, Any]) -> None:
    """Let an address ask as often as it likes; it is counted all the same."""
    parts = _manager(listener)["typed_config"]["http_filters"]
    config = next(p for p in parts if p["name"] == _ADDRESSES)["typed_config"]
    for part in (config, *config["descriptors"]):
        part["token_bucket"].update(
            max_tokens=_NEVER_REACHED, tokens_per_fill=_NEVER_REACHED
        )


def behind_a_gateway(listener: dict[str, Any]) -> None:
    """Believe what the sender says of the addresses of its clients."""
    _manager(listener)["typed_config"]["xff_num_trusted_hops"] = 1


def without_script(listener: dict[str, Any]) -> None:
    """Leave out gateway.lua and its guard."""
    unbounded(listener)
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


def router_alone(listener: dict[str, Any], *before: dict[str, Any]) -> None:
    """Leave out all but the router and one plain route: a proxy that asks nobody."""
    key_check_alone(listener)
    manager = _manager(listener)["typed_config"]
    manager["http_filters"] = [*before, manager["http_filters"][-1]]


def native_keys(key: str) -> Callable[[dict[str, Any]], None]:
    """Return a change to the router alone, behind Envoy's own list of keys."""
    keys = {
        "name": "envoy.filters.http.api_key_auth",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http"
            ".api_key_auth.v3.ApiKeyAuth",
            "credentials": [{"key": key, "client": "benchmark"}],
            "key_sources": [{"header": "authorization"}],
        },
    }
    return lambda listener: router_alone(listener, keys)


def at(host: str, port: int) -> Callable[[dict[str, Any]], None]:
    """Return a change of a cluster: it stands at an address."""
    address = {"socket_address": {"address": host, "port_value": port}}
    endpoints = {"lb_endpoints": [{"endpoint": {"address": address}}]}

    def move(cluster: dict[str, Any]) -> None:
        cluster["type"] = "STRICT_DNS"
        cluster["load_assignment"]["endpoints"] = [endpoints]

    return move


def _manager(listener: dict[str, Any]) -> dict[str, Any]:
    filters: list[dict[str, Any]] = listener["filter_chains"][0]["filters"]
    return next(part for part in filters if part["name"] == _MANAGER)
