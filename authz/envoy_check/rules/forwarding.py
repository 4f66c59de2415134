"""Forwarding: what was checked goes on as it was, to one place, and once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptions

from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.config.route.v3 import RetryPolicy

    from authz.envoy_check.config import Config
    from authz.envoy_check.findings import Problem

# After these the model server has not begun with a request.
_NOT_BEGUN = frozenset({"connect-failure", "refused-stream", "reset-before-request"})
_PATH_CHANGES = (
    *("prefix_rewrite", "regex_rewrite", "path_rewrite", "path_rewrite_policy"),
    *("host_rewrite_header", "host_rewrite_path_regex"),
)


@rule(
    "path-rewrite",
    why="authz allowed another path, or host, than the model server would get.",
    mend="Take the rewrite away; the path travels as it was checked.",
)
def path_rewrite(config: Config) -> Iterator[Problem]:
    """Look for paths and hosts that are changed after the check."""
    for _, way in config.ways():
        if way.route.route is not None:
            yield from config.filled(way.route.route, *_PATH_CHANGES)


@rule(
    "header-after-check",
    why="It reaches the model server, which passes on what it gets, without standing on"
    " the list of headers that may travel.",
    mend="Add it before the check and name it in the filter forwarded_headers.",
)
def header_after_check(config: Config) -> Iterator[Problem]:
    """Look for headers that the router adds."""
    for door in config.gateways:
        for way in door.ways:
            for level in way.levels:
                yield from config.filled(level, "request_headers_to_add")
            if way.route.route is not None:
                yield from config.filled(way.route.route, "append_x_forwarded_host")


@rule(
    "post-retried",
    why="A generation that has begun would run twice, and cost twice.",
    mend="Retry on connect-failure, refused-stream or reset-before-request alone.",
)
def post_retried(config: Config) -> Iterator[Problem]:
    """Look for retries of what the model server may have begun."""
    for door in config.gateways:
        for way in door.ways:
            for owner in (way.host, way.route.route):
                if owner is not None:
                    names = ("retry_policy_typed_config", "hedge_policy")
                    yield from config.filled(owner, *names)
                    yield from _retries(config, owner.retry_policy)
    for options in config.reader.all(HttpProtocolOptions):
        yield from _retries(config, options.retry_policy)


def _retries(config: Config, policy: RetryPolicy | None) -> Iterator[Problem]:
    if policy is not None:
        when = {name.strip() for name in policy.retry_on.split(",")}
        if repeated := sorted(when - _NOT_BEGUN):
            what = f"Requests are repeated on {', '.join(repeated)!r}."
            yield config.place(policy, "retry_on"), what


@rule(
    "mirrored",
    why="Every prompt would also go to another cluster.",
    mend="Take request_mirror_policies away.",
)
def mirrored(config: Config) -> Iterator[Problem]:
    """Look for copies of requests."""
    name = "request_mirror_policies"
    for door in config.gateways:
        for way in door.ways:
            for owner in (way.table, way.host, way.route.route):
                if owner is not None:
                    yield from config.filled(owner, name)
    for options in config.reader.all(HttpProtocolOptions):
        yield from config.filled(options, name)


@rule(
    "internal-redirect",
    why="The model server's answer would choose what Envoy asks next.",
    mend="Take the policy away: redirects are errors of the model server.",
)
def internal_redirect(config: Config) -> Iterator[Problem]:
    """Look for redirects that Envoy follows."""
    for _, way in config.ways():
        if way.route.route is not None:
            names = ("internal_redirect_policy", "internal_redirect_action")
            yield from config.filled(way.route.route, *names)


@rule(
    "upgrade",
    why="What an upgraded connection, or CONNECT, carries is never authorised.",
    mend="Take upgrade_configs, connect_matcher and allow_connect away.",
)
def upgrade(config: Config) -> Iterator[Problem]:
    """Look for connections that leave HTTP."""
    for door in config.doors:
        yield from config.filled(door.manager, "upgrade_configs")
        if options := door.manager.http2_protocol_options:
            yield from config.filled(options, "allow_connect")
        if quic := door.manager.http3_protocol_options:
            yield from config.filled(quic, "allow_extended_connect")
        for way in door.ways:
            match, action = way.route.match, way.route.route
            if match is not None and match.connect_matcher is not None:
                place = config.place(match, "connect_matcher")
                yield place, f"Route {way.route.name!r} takes CONNECT."
            if action is not None:
                yield from config.filled(action, "upgrade_configs")
