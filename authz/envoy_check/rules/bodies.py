"""Bodies: authz sees them whole, as they are, and from nobody unknown long ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz

from authz.envoy_check.findings import rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import (
        BufferSettings,
    )

    from authz.envoy_check.config import Config
    from authz.envoy_check.doors import Way
    from authz.envoy_check.findings import Problem

_BODY_LIMIT = 16_777_216
# What a request without a good key may make Envoy hold.
_HELD_FOR_STRANGERS = 65_536


def _bodies(config: Config) -> Iterator[BufferSettings]:
    """Return every setting of how a body is sent to authz."""
    for _, _, settings in config.checks():
        if settings.with_request_body:
            yield settings.with_request_body
    for _, _, said in config.check_settings():
        if said.with_request_body:
            yield said.with_request_body


@rule(
    "partial-body",
    why="What authz did not see it cannot judge: the model's name may come last.",
    mend="Set allow_partial_message to false.",
)
def partial_body(config: Config) -> Iterator[Problem]:
    """Look for bodies that authz sees in part."""
    for body in _bodies(config):
        if body.allow_partial_message:
            place = config.place(body, "allow_partial_message")
            yield place, "allow_partial_message is true."


@rule(
    "body-as-text",
    why="Bytes that are not UTF-8 would be replaced: authz would judge another body"
    " than the one that is forwarded.",
    mend="Set pack_as_bytes to true.",
)
def body_as_text(config: Config) -> Iterator[Problem]:
    """Look for bodies that are changed on their way to authz."""
    for body in _bodies(config):
        if not body.pack_as_bytes:
            yield config.place(body, "pack_as_bytes"), "pack_as_bytes is not true."


@rule(
    "body-limit",
    why="authz takes 16 MiB and refuses more as its own failure (503); with less,"
    " clients lose what they were promised.",
    mend=f"Set max_request_bytes to {_BODY_LIMIT}.",
)
def body_limit(config: Config) -> Iterator[Problem]:
    """Look for another limit than the one that authz has."""
    for body in _bodies(config):
        if body.max_request_bytes != _BODY_LIMIT:
            place = config.place(body, "max_request_bytes")
            yield place, f"max_request_bytes is {body.max_request_bytes}."


@rule(
    "body-not-sent",
    why="authz would allow what it has not read.",
    mend="Take this away: the last check sees the whole body on every route.",
)
def body_not_sent(config: Config) -> Iterator[Problem]:
    """Look for full checks that get no body, or that ask only who it is."""
    for door, each, settings in config.checks():
        if each in door.full_checks and settings.with_request_body is None:
            yield config.place(settings), f"{each.name} has no with_request_body."
    for way, each, said in config.check_settings():
        if each.full_check and said.disable_request_body_buffering:
            place = config.place(said, "disable_request_body_buffering")
            yield place, f"Route {way.route.name!r} sends no body to {each.name}."
        if each.full_check and "phase" in said.context_extensions:
            place = config.place(said, "context_extensions")
            yield (
                place,
                f"Route {way.route.name!r} asks {each.name} for one phase only.",
            )


@rule(
    "body-held-for-strangers",
    why="Whoever invents a key makes Envoy hold 16 MiB a request.",
    mend="Bound content-length in the route's match (end: 65537), or turn on the check"
    " without body for it.",
)
def body_held_for_strangers(config: Config) -> Iterator[Problem]:
    """Look for routes that hold long bodies before anybody was asked."""
    for door in config.gateways:
        first = [
            each
            for each, settings in door.of(ExtAuthz)
            if settings.with_request_body is None
        ]
        for way in door.ways if door.full_checks else ():
            asked = any(config.runs(each, way) for each in first)
            if way.route.route is not None and not (asked or _short(way)):
                what = f"Route {way.route.name!r} takes long bodies unasked."
                yield config.place(way.route), what


def _short(way: Way) -> bool:
    match = way.route.match
    return any(
        header.name.lower() == "content-length"
        and not header.invert_match
        and not header.treat_missing_header_as_empty
        and header.range_match is not None
        and header.range_match.end <= _HELD_FOR_STRANGERS + 1
        for header in (match.headers if match else ())
    )
