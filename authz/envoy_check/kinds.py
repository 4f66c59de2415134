"""The types of Envoy's API, as envoy-data-plane has them."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from betterproto2 import Message
from envoy_data_plane.google.protobuf import Any
from envoy_data_plane.message_pool import default_message_pool

if TYPE_CHECKING:
    from betterproto2 import ProtoClassMetadata

_WELL_KNOWN = "envoy_data_plane.google.protobuf"
_TYPE = re.compile(r"(?:[a-z][a-z0-9_]*\.)+[A-Z][A-Za-z0-9]*")


@cache
def names(kind: type[Message]) -> dict[str, str]:
    """Return the fields by the two names that each has in a file."""
    names = {}
    for name in facts_of(kind).meta_by_field_name:
        written = name.rstrip("_")
        names[written] = name
        names[re.sub("_(.)", lambda match: match[1].upper(), written)] = name
    return names


def facts_of(kind: type[Message]) -> ProtoClassMetadata:
    """Return what betterproto knows of a type; it has no public name for that."""
    return kind._betterproto  # type: ignore[arg-type]  # noqa: SLF001


def is_message(kind: type) -> bool:
    """Whether we read it field by field: it is no value with a form of its own."""
    return kind is Any or (
        issubclass(kind, Message) and not kind.__module__.startswith(_WELL_KNOWN)
    )


def kind_of(name: str) -> type[Message] | None:
    """Find a message by its full name; its module registers it when imported."""
    if not _TYPE.fullmatch(name):
        return None
    try:
        import_module(f"envoy_data_plane.{name.rpartition('.')[0]}")
    except ModuleNotFoundError:
        return None
    return default_message_pool.url_to_type.get(f"type.googleapis.com/{name}")
