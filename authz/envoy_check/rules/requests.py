"""Requests: read by authz as by the model server, by nobody's word, not too many."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, ip_network
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.core.v3 import (
    HttpProtocolOptionsHeadersWithUnderscoresAction as Underscores,
)
from envoy_data_plane.envoy.extensions.filters.http.cors.v3 import CorsPolicy
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.local_ratelimit.v3 import (
    LocalRateLimit,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: E501
    HttpConnectionManagerPathWithEscapedSlashesAction as Slashes,
)
from envoy_data_plane.envoy.type.v3 import FractionalPercentDenominatorType

from authz.envoy_check.doors import script_of
from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.config.core.v3 import (
        CidrRange,
        RuntimeFractionalPercent,
    )
    from envoy_data_plane.envoy.config.route.v3 import RateLimit
    from envoy_data_plane.envoy.type.v3 import TokenBucket

    from authz.envoy_check.config import Config
    from authz.envoy_check.findings import Problem

# Addresses that no host has.
_RESERVED = IPv4Network("240.0.0.0/4")
_ANY_ORIGIN = re.compile(r"""\[\s*["'](?:null|\*)["']\s*\]\s*=\s*true""")
_HUNDRED = FractionalPercentDenominatorType.HUNDRED
# Of a bucket, in a second.
_FASTEST = 10_000
# How many addresses are told apart.
_REMEMBERED = (1000, 1_000_000)


@rule(
    "path-normalization",
    why="The model server may read /x/../api/chat as another path than authz did.",
    mend="Set normalize_path to true.",
)
def path_normalization(config: Config) -> Iterator[Problem]:
    """Look for paths that are not folded."""
    return _unless(config, "normalize_path", True, "normalize_path is not true.")


@rule(
    "slashes-merged",
    why="The model server may read //api/chat as another path than authz did.",
    mend="Set merge_slashes to true.",
)
def slashes_merged(config: Config) -> Iterator[Problem]:
    """Look for paths with empty segments."""
    return _unless(config, "merge_slashes", True, "merge_slashes is not true.")


@rule(
    "escaped-slashes",
    why="The model server may read %2F as a slash where authz saw none.",
    mend="Set path_with_escaped_slashes_action to REJECT_REQUEST.",
)
def escaped_slashes(config: Config) -> Iterator[Problem]:
    """Look for paths with slashes in disguise."""
    name, wanted = "path_with_escaped_slashes_action", Slashes.REJECT_REQUEST
    return _unless(config, name, wanted, "Escaped slashes are not rejected.")


def _unless(
    config: Config, name: str, wanted: object, problem: str
) -> Iterator[Problem]:
    for door in config.leading:
        if getattr(door.manager, name) != wanted:
            yield config.place(door.manager, name), problem


@rule(
    "underscores",
    why="A server may take x_api_key for x-api-key.",
    mend="Set headers_with_underscores_action to REJECT_REQUEST under"
    " common_http_protocol_options.",
)
def underscores(config: Config) -> Iterator[Problem]:
    """Look for headers that others may read as another one."""
    for door in config.gateways:
        options = door.manager.common_http_protocol_options
        name = "headers_with_underscores_action"
        if options is None or getattr(options, name) != Underscores.REJECT_REQUEST:
            place = config.place(options or door.manager, name)
            yield place, "Headers with underscores are not rejected."


@rule(
    "lenient-http1",
    why="Two readers of one connection may see different requests in it (smuggling).",
    mend="Take the setting away.",
)
def lenient_http1(config: Config) -> Iterator[Problem]:
    """Look for HTTP/1 that is read leniently."""
    for door in config.leading:
        options = door.manager.http_protocol_options
        for name in ("allow_chunked_length", "accept_http_10", "allow_custom_methods"):
            if options and options.is_set(name):
                yield config.place(options, name), f"{name} is true."


@rule(
    "trusted-id",
    why="Limits are held under the request's id: who chooses his own gives back what"
    " another request holds.",
    mend="Set use_remote_address and generate_request_id to true and"
    " internal_address_config to 240.0.0.0/4. Behind a gateway that you trust set"
    " preserve_external_request_id, and xff_num_trusted_hops to the number of proxies.",
)
def trusted_id(config: Config) -> Iterator[Problem]:
    """Look for ids that a client can choose."""
    for door in config.gateways:
        manager = door.manager
        if not manager.use_remote_address:
            place = config.place(manager, "use_remote_address")
            yield place, "use_remote_address is not true: a client's id is kept."
        if manager.generate_request_id is False:
            place = config.place(manager, "generate_request_id")
            yield place, "generate_request_id is false."
        if manager.preserve_external_request_id and not manager.xff_num_trusted_hops:
            place = config.place(manager, "preserve_external_request_id")
            yield place, "Ids from outside are kept, though no proxy stands in front."
        inside = manager.internal_address_config
        ranges = inside.cidr_ranges if inside else []
        if (
            not ranges
            or any(_real(each) for each in ranges)
            or (inside and inside.unix_sockets)
        ):
            owner = inside or manager
            place = config.place(owner, "cidr_ranges" if inside else "")
            yield place, "Clients of real addresses count as internal."


def _real(cidr: CidrRange) -> bool:
    try:
        length = cidr.prefix_len or 0
        network = ip_network(f"{cidr.address_prefix}/{length}", strict=False)
    except ValueError:
        return True
    return not (isinstance(network, IPv4Network) and network.subnet_of(_RESERVED))


@rule(
    "local-ratelimit",
    why="One address can keep authz busy with invented keys, and good keys wait.",
    mend="Have local_ratelimit before each ext_authz, with the actions and descriptors"
    " of listener.yaml, and filter_enabled and filter_enforced at 100.",
)
def local_ratelimit(config: Config) -> Iterator[Problem]:
    """Look for the bound on requests of one address."""
    for door in config.gateways:
        checks = [
            index
            for index, each in enumerate(door.before_router)
            if isinstance(each.config, ExtAuthz)
        ]
        if not checks:
            continue
        before = {id(each) for each in door.before_router[: checks[0]]}
        limits = [each for each in door.of(LocalRateLimit) if id(each[0]) in before]
        if not limits:
            place = config.place(door.manager, "http_filters")
            yield place, "There is no local_ratelimit before the check."
        for each, limit in limits:
            for name in ("filter_enabled", "filter_enforced"):
                if not _decided(getattr(limit, name)):
                    yield config.place(limit, name), f"{name} is not 100 %, nor 0."
            if each.message.disabled:
                yield config.place(each.message, "disabled"), "It is turned off."
            yield from _hollow(config, limit)


def _decided(fraction: RuntimeFractionalPercent | None) -> bool:
    """Whether a limit holds always, or never, which docs/operations.md offers."""
    value = fraction.default_value if fraction else None
    return value is not None and (
        value.numerator == 0 or (value.numerator, value.denominator) == (100, _HUNDRED)
    )


def _hollow(config: Config, limit: LocalRateLimit) -> Iterator[Problem]:
    """Look for a limit that is there and bounds nobody."""
    name = "local_rate_limit_per_downstream_connection"
    if getattr(limit, name):
        yield config.place(limit, name), "Each connection has a rate of its own."
    if not _REMEMBERED[0] <= (limit.max_dynamic_descriptors or 0) <= _REMEMBERED[1]:
        place = config.place(limit, "max_dynamic_descriptors")
        yield place, "Too few addresses are remembered, or too many."
    counted = [tuple(entry.key for entry in each.entries) for each in limit.descriptors]
    if not limit.rate_limits or any(
        _key(each) not in counted for each in limit.rate_limits
    ):
        place = config.place(limit, "rate_limits")
        yield place, "There are no rate_limits of addresses, or none that are counted."
    buckets = [limit.token_bucket, *(each.token_bucket for each in limit.descriptors)]
    for bucket in filter(None, buckets):
        if _rate(bucket) > _FASTEST:
            yield config.place(bucket), f"More than {_FASTEST} requests in a second."


def _key(limit: RateLimit) -> tuple[str, ...] | None:
    """Return what is counted; None if no address is in it, or something else."""
    keys = []
    for action in limit.actions:
        if action.generic_key is not None:
            keys.append(action.generic_key.descriptor_key or "generic_key")
        elif action.masked_remote_address is not None:
            keys.append("masked_remote_address")
        elif action.remote_address is not None:
            keys.append("remote_address")
        else:
            return None
    return tuple(keys) if keys and keys[-1].endswith("remote_address") else None


def _rate(bucket: TokenBucket) -> float:
    interval = bucket.fill_interval.total_seconds() if bucket.fill_interval else 1.0
    tokens = bucket.tokens_per_fill or 1
    return max(float(bucket.max_tokens), tokens / max(interval, 0.001))


@rule(
    "any-origin",
    why="A page of anybody could use the key that another page holds.",
    mend="Name origins one by one, exactly.",
)
def any_origin(config: Config) -> Iterator[Problem]:
    """Look for pages that may call without being named."""
    for door in config.gateways:
        for each, _ in door.of(Lua):
            script = script_of(each)
            if script and _ANY_ORIGIN.search(script.inline_string or ""):
                yield config.place(each.message), f"{each.name} lets every page call."
        for way in door.ways:
            for level in way.levels:
                for packed in level.typed_per_filter_config.values():
                    policy = config.reader.unpacked(packed)
                    if isinstance(policy, CorsPolicy):
                        yield from _origins(config, policy)


def _origins(config: Config, policy: CorsPolicy) -> Iterator[Problem]:
    for matcher in policy.allow_origin_string_match:
        if matcher.exact in (None, "*", "null"):
            yield config.place(matcher), "Origins are not named one by one."
