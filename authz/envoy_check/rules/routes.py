"""Routes: each request is taken by one, and none leads where nobody looked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.cluster.v3 import ClusterDiscoveryType

from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.config.route.v3 import RouteMatch

    from authz.envoy_check.config import Config
    from authz.envoy_check.doors import Way
    from authz.envoy_check.findings import Problem

_FIRST_ERROR = 400
_CHOSEN = (
    *("cluster_header", "cluster_specifier_plugin"),
    "inline_cluster_specifier_plugin",
)
_CONDITIONS = (
    *("headers", "query_parameters", "cookies", "grpc", "runtime_fraction"),
    *("tls_context", "dynamic_metadata", "filter_state"),
)


@rule(
    "no-catch-all",
    why="A request that no route takes is not checked, and gets Envoy's own 404.",
    mend='End every virtual host with {match: {prefix: /}}, and have one for "*".',
)
def no_catch_all(config: Config) -> Iterator[Problem]:
    """Look for requests that no route takes."""
    for door in config.gateways:
        hosts = door.routes.virtual_hosts if door.routes else []
        if door.routes and not any("*" in host.domains for host in hosts):
            yield config.place(door.routes), 'No virtual host has the domain "*".'
        for host in hosts:
            if not (host.routes and takes_all(host.routes[-1].match)):
                what = f"The last route of {host.name!r} does not take every request."
                yield config.place(host.routes[-1] if host.routes else host), what


def takes_all(match: RouteMatch | None) -> bool:
    """Whether a route takes every request that comes to it."""
    if match is None or match.prefix != "/":
        return False
    return not any(match.is_set(name) for name in _CONDITIONS)


@rule(
    "open-route",
    why="What is answered without a check is open to everybody. Only GET /healthz is,"
    " and the refusal (401) of what has no credential.",
    mend="Turn the check on for this route, or answer with a 401.",
)
def open_route(config: Config) -> Iterator[Problem]:
    """Look for answers without a check beside the two that there are."""
    for door in config.gateways:
        for way in door.ways:
            off = any(
                override.disabled
                for each in door.full_checks
                for override in config.overrides(way, each.name)
            )
            if off and way.route.route is None and not _may_be_open(way):
                yield config.place(way.route), f"Route {way.route.name!r} is open."
            answer = way.route.direct_response
            if answer and answer.body:
                names = ("filename", "environment_variable")
                yield from config.filled(answer.body, *names)


def _may_be_open(way: Way) -> bool:
    answer, match = way.route.direct_response, way.route.match
    if answer is None:
        return False
    return answer.status >= _FIRST_ERROR or bool(match and match.path == "/healthz")


@rule(
    "routes-unseen",
    why="Routes that are not in the files given cannot be checked.",
    mend="Give all files at once; have routes in files, in plain virtual_hosts.",
)
def routes_unseen(config: Config) -> Iterator[Problem]:
    """Look for routes that come from elsewhere, or that hide in matchers."""
    for door in config.doors:
        if door.routes is None:
            field = "rds" if door.manager.rds else "scoped_routes"
            name = door.manager.rds.route_config_name if door.manager.rds else ""
            what = f"The routes {name!r} are in no file given."
            yield config.place(door.manager, field), what
            continue
        yield from config.filled(door.routes, "vhds", "vhost_header")
        for host in door.routes.virtual_hosts:
            yield from config.filled(host, "matcher")
        for way in door.ways:
            names = ("filter_action", "non_forwarding_action")
            yield from config.filled(way.route, *names)


@rule(
    "client-chooses-upstream",
    why="A client would say where its request goes: past the model server, into your"
    " network.",
    mend="Name one cluster, with fixed endpoints.",
)
def client_chooses_upstream(config: Config) -> Iterator[Problem]:
    """Look for clusters that a header names, and addresses that a request has."""
    for _, way in config.ways():
        if way.route.route is not None:
            yield from config.filled(way.route.route, *_CHOSEN)
        for share in way.weighted:
            yield from config.filled(share, "cluster_header")
        for name in way.clusters:
            cluster = config.clusters.get(name)
            if cluster and cluster.type == ClusterDiscoveryType.ORIGINAL_DST:
                yield config.place(cluster, "type"), f"{name!r} is ORIGINAL_DST."
            elif cluster and cluster.cluster_type is not None:
                place = config.place(cluster, "cluster_type")
                yield place, f"{name!r} is of a type of its own."


@rule(
    "unknown-cluster",
    why="Where these requests go cannot be checked; Envoy answers them with an error.",
    mend="Give the file that has the cluster, or correct the name.",
)
def unknown_cluster(config: Config) -> Iterator[Problem]:
    """Look for routes to clusters that are in no file."""
    for _, way in config.ways():
        for name in way.clusters:
            if name not in config.clusters and way.route.route:
                place = config.place(way.route.route)
                yield place, f"Cluster {name!r} is in no file given."
