"""Error bodies: every status has a mapper, with our three fields and nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.core.v3 import HeaderValueOption
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.filters.network.set_filter_state.v3 import (
    Config as SetFilterState,
)

from authz.envoy_check.filters import takes
from authz.envoy_check.findings import rule
from authz.envoy_check.formats import commands

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from envoy_data_plane.envoy.config.core.v3 import SubstitutionFormatString
    from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: E501
        ResponseMapper,
    )

    from authz.envoy_check.config import Config
    from authz.envoy_check.doors import Door
    from authz.envoy_check.findings import Problem


_ERRORS = range(400, 600)
_DENIALS = (400, 401, 403, 404, 405, 413, 415, 429, 500, 503)
_FIELDS = {"code", "message", "request_id"}
_IDS = {"x-request-id", "request-id"}
_TOLD = re.compile(r"[a-z_.]+:(?:code|message|request_id)")
_CONNECTION = ("FILTER_STATE", "connection.id:PLAIN")


def _mappers(door: Door) -> list[ResponseMapper]:
    replies = door.manager.local_reply_config
    return list(replies.mappers) if replies else []


@rule(
    "global-body-format",
    why="It rewrites answers that are no errors, too, and prints Envoy's own texts.",
    mend="Use mappers for errors alone.",
)
def global_body_format(config: Config) -> Iterator[Problem]:
    """Look for formats that apply to more than errors."""
    for door in config.gateways:
        replies = door.manager.local_reply_config
        if replies and replies.body_format is not None:
            yield (
                config.place(replies, "body_format"),
                "There is a body_format for all.",
            )
        for mapper in _mappers(door):
            if mapper.body_format_override is not None and takes(
                mapper.filter, 200, ()
            ):
                place = config.place(mapper, "body_format_override")
                yield place, "A mapper rewrites the body of a 200."


@rule(
    "mapper-status",
    why="Envoy's own text would reach the client; it names hosts and causes.",
    mend="Add a mapper for them, or use the last ones of envoy/listener.yaml.",
)
def mapper_status(config: Config) -> Iterator[Problem]:
    """Look for errors that no mapper takes."""
    for door in config.gateways:
        mappers = _mappers(door)
        missing = [
            status
            for status in _ERRORS
            if not any(takes(mapper.filter, status, ()) for mapper in mappers)
        ]
        if missing:
            replies = door.manager.local_reply_config
            place = config.place(replies or door.manager, "mappers")
            named = ", ".join(map(str, missing[:5])) + (" …" if missing[5:] else "")
            yield place, f"No mapper surely takes the status {named}."


@rule(
    "mapper-fields",
    why="Every error has code, message and request_id, no more, and its id in the"
    " headers X-Request-ID and Request-Id; other texts tell of what stands behind.",
    mend="Write the mapper as those of envoy/listener.yaml.",
)
def mapper_fields(config: Config) -> Iterator[Problem]:
    """Look for error bodies with other fields, other words, or no id."""
    for door in config.gateways:
        for mapper in _mappers(door):
            for name, what in _wrong(mapper) if _takes_errors(door, mapper) else ():
                yield config.place(mapper, name), what


def _takes_errors(door: Door, mapper: ResponseMapper) -> bool:
    """Whether a mapper may take an error of Envoy, or a refusal by authz."""
    if any(takes(mapper.filter, status, ()) is not False for status in _ERRORS):
        return True
    return any(
        takes(mapper.filter, status, (f"{each.name}:code",))
        for each, _ in door.of(ExtAuthz)
        for status in _DENIALS
    )


def _wrong(mapper: ResponseMapper) -> Iterator[tuple[str, str]]:
    """Return what is wrong with a mapper, with the field that it is in."""
    if mapper.status_code is not None and mapper.status_code not in _ERRORS:
        yield "status_code", f"An error becomes a {mapper.status_code}."
    ids = {
        option.header.key.lower() for option in mapper.headers_to_add if option.header
    }
    if missing := sorted(_IDS - ids):
        yield "headers_to_add", f"The reply lacks {', '.join(missing)}."
    if what := _wrong_body(mapper.body_format_override):
        yield "body_format_override", what


def _wrong_body(form: SubstitutionFormatString | None) -> str:
    if form is None or form.json_format is None:
        return "The mapper has no body_format_override with json_format."
    error = form.json_format.fields.get("error")
    inner = error.struct_value if error else None
    if set(form.json_format.fields) != {"error"} or inner is None:
        return "The body is not {error: {…}}."
    if odd := sorted(_FIELDS ^ set(inner.fields)):
        return f"The error lacks, or has besides: {', '.join(odd)}."
    for value in inner.fields.values():
        if value.string_value is None:
            return "A field of the error is no text."
        if other := _beyond_words(value.string_value):
            return f"The error prints {other}."
    return ""


def _beyond_words(text: str) -> str:
    """Return what a text prints beside fixed words, ids and what authz tells."""
    found = commands(text)
    if found is None:
        return "what cannot be read"
    for name, param in found:
        told = name == "DYNAMIC_METADATA" and _TOLD.fullmatch(param)
        if not told and (name, param) != _CONNECTION:
            return f"{name} {param}".strip()
    return ""


@rule(
    "header-tells",
    why="It may name what stands behind, or send a credential back.",
    mend="Give it fixed words; the id is written as in envoy/listener.yaml.",
)
def header_tells(config: Config) -> Iterator[Problem]:
    """Look for headers that are put together from what Envoy has at hand."""
    for option in config.reader.all(HeaderValueOption):
        header = option.header
        if header is None:
            continue
        if header.raw_value:
            yield config.place(header, "raw_value"), "raw_value is set."
        if other := _beyond_words(header.value):
            yield config.place(header, "value"), f"{header.key!r} prints {other}."


@rule(
    "denial-mapper",
    why="A refusal by authz would lose its code and message.",
    mend="Keep the first mappers of envoy/listener.yaml, with a metadata_filter on the"
    " code for each ext_authz, by its name.",
)
def denial_mapper(config: Config) -> Iterator[Problem]:
    """Look for refusals that get another text than that of authz."""
    for door in config.gateways:
        for each, _ in door.of(ExtAuthz):
            said = (f"{each.name}:code",)
            lost = [status for status in _DENIALS if not _tells(door, status, said)]
            if lost:
                replies = door.manager.local_reply_config
                place = config.place(replies or door.manager, "mappers")
                named = ", ".join(map(str, lost))
                yield place, f"A {named} of {each.name} is told in other words."


def _tells(door: Door, status: int, said: Collection[str]) -> bool:
    for mapper in _mappers(door):
        if takes(mapper.filter, status, said):
            form = mapper.body_format_override
            text = str(form.json_format.to_dict()) if form and form.json_format else ""
            return all(name in text for name in said)
    return False


@rule(
    "response-id",
    why="Every response has its id in X-Request-ID and Request-Id, also those of the"
    " model server.",
    mend="Add both under response_headers_to_add of every virtual host.",
)
def response_id(config: Config) -> Iterator[Problem]:
    """Look for routes whose responses have no id."""
    for door in config.gateways:
        for host in door.routes.virtual_hosts if door.routes else ():
            added = [*host.response_headers_to_add]
            added += door.routes.response_headers_to_add if door.routes else []
            ids = {each.header.key.lower() for each in added if each.header}
            if missing := sorted(_IDS - ids):
                place = config.place(host, "response_headers_to_add")
                yield place, f"Responses get no {', '.join(missing)}."


@rule(
    "early-id",
    why="Requests that break HTTP itself would be answered without an id.",
    mend="Have the network filter set_filter_state make connection.id, before the"
    " connection manager.",
)
def early_id(config: Config) -> Iterator[Problem]:
    """Look for the id of connections."""
    for door in config.gateways:
        networks = door.chain.filters if door.chain else []
        states = [config.reader.unpacked(each.typed_config) for each in networks]
        made = [
            state.object_key
            for each in states
            if isinstance(each, SetFilterState)
            for state in each.on_new_connection
        ]
        if "connection.id" not in made:
            yield (
                config.place(door.chain or door.manager, "filters"),
                "No connection.id.",
            )
