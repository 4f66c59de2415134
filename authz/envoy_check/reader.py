"""Nodes of YAML as typed messages of Envoy's API, each of which knows its lines.

The conversion of values is envoy-data-plane's. What it does not know, or refuses, is
a finding and is left out: the rest is read all the same.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import yaml
from betterproto2 import TYPE_MESSAGE, Message
from envoy_data_plane.google.protobuf import Any

from authz.envoy_check.findings import Place, found_in_reading
from authz.envoy_check.kinds import facts_of, is_message, kind_of, names
from authz.envoy_check.source import DUPLICATE_KEY, is_null, line_of, plain, texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authz.envoy_check.findings import Finding

_STRUCTS = frozenset({"xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"})
_REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError),
    *(LookupError, TypeError, ValueError),
)

# Fields of Envoy 1.39 and 1.40, whose API envoy-data-plane 2.2 (about 1.38) does not
# have yet, and that open nothing. Others must wait for it.
_NEWER = {
    "CheckSettings": frozenset({"emit_client_span"}),
    "ExtAuthz": frozenset({"emit_client_span"}),
    "LocalRateLimit": frozenset({"enable_retry_after_header"}),
    "PathConfigSource": frozenset({"poll_interval"}),
    "WatchedDirectory": frozenset({"watch_modify"}),
}

UNKNOWN_FIELD = found_in_reading(
    "unknown-field",
    why="A setting that Envoy does not have, or that the rules cannot judge, is not"
    " the protection it looks like; a reloaded file with one is rejected as a whole.",
    mend="Correct the name or take it out.",
)
UNKNOWN_TYPE = found_in_reading(
    "unknown-type",
    why="What it does to a request is not known, so nothing can be promised.",
    mend='Correct "@type", or do without this extension.',
)
UNREADABLE = found_in_reading(
    "unreadable",
    why="What cannot be read cannot be checked, and Envoy rejects it.",
    mend="Give it the form that Envoy's API reference has.",
)

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class _Origin:
    message: Message  # kept, so that nothing else gets its id
    file: str
    node: yaml.Node
    lines: dict[str, int]


@dataclass(slots=True)
class Reader:
    """Reads messages and remembers where each, and each field of it, stands."""

    findings: list[Finding] = field(default_factory=list)
    _file: str = ""
    _origins: dict[int, _Origin] = field(default_factory=dict)
    _packed: dict[int, Message] = field(default_factory=dict)

    def read(self, file: str, kind: type[M], node: yaml.Node) -> M:
        """Read a whole file as one message."""
        self._file = file
        with warnings.catch_warnings():  # that a field is deprecated is no hole
            warnings.simplefilter("ignore")
            return self._message(kind, node)

    def place(self, message: Message, name: str = "") -> Place:
        """Return where a field of a message stands, else where the message does."""
        origin = self._origins[id(message)]
        return Place(origin.file, origin.lines.get(name) or line_of(origin.node))

    def unpacked(self, packed: Any | None) -> Message | None:
        """Return what an Any holds, if it could be read."""
        return self._packed.get(id(packed))

    def written(self, message: Message) -> list[str]:
        """Return the fields of a message that stand in the file."""
        return list(self._origins[id(message)].lines)

    def all(self, kind: type[M]) -> list[M]:
        """Return every message of a type that was read."""
        messages = [origin.message for origin in self._origins.values()]
        return [each for each in messages if isinstance(each, kind)]

    def scalars(self, message: Message) -> Iterator[tuple[str, Place]]:
        """Return every text within a message."""
        origin = self._origins[id(message)]
        for node in texts(origin.node):
            yield str(node.value), Place(origin.file, line_of(node))

    def _message(self, kind: type[M], node: yaml.Node) -> M:
        values: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key, value in self._members(kind, node):
            name = names(kind).get(key.value)
            if name is None:
                self._unknown_field(kind, key)
            elif name in lines:  # under its other name
                self.findings.append(
                    DUPLICATE_KEY.at(self._at(key), f"{key.value!r} again.")
                )
            elif not is_null(value):
                lines[name] = line_of(key)
                with self._reported(key, f"{key.value} of {kind.__name__}"):
                    values[name] = self._field(kind, name, key.value, value)
        return self._known(self._built(kind, values, lines), node, lines)

    def _members(
        self, kind: type[Message], node: yaml.Node
    ) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        if isinstance(node, yaml.MappingNode):
            return list(node.value)
        what = f"A mapping is expected here, of {kind.__name__}."
        self.findings.append(UNREADABLE.at(self._at(node), what))
        return []

    def _unknown_field(self, kind: type[Message], key: yaml.ScalarNode) -> None:
        if key.value not in _NEWER.get(kind.__name__, ()):
            what = f"{kind.__name__} has no field {key.value!r}."
            self.findings.append(UNKNOWN_FIELD.at(self._at(key), what))

    def _built(
        self, kind: type[M], values: dict[str, object], lines: dict[str, int]
    ) -> M:
        """Build a message; of fields that exclude each other, the first is kept."""
        while True:
            try:
                return kind(**values)
            except _REFUSALS:
                name, _ = values.popitem()
                what = f"{name} does not go with the rest of {kind.__name__}."
                place = Place(self._file, lines[name])
                self.findings.append(UNREADABLE.at(place, what))

    def _field(
        self, kind: type[Message], name: str, key: str, node: yaml.Node
    ) -> object:
        known = facts_of(kind)
        facts, kinds = known.meta_by_field_name[name], known.cls_by_field
        if facts.map_meta:
            value_kind = kinds[f"{name}.value"]
            if facts.map_meta[1].proto_type == TYPE_MESSAGE and is_message(value_kind):
                return {
                    str(each.value): self._one(value_kind, value)
                    for each, value in self._members(kind, node)
                }
        elif facts.proto_type == TYPE_MESSAGE and is_message(kinds[name]):
            if facts.repeated:
                return [self._one(kinds[name], item) for item in _items(node)]
            return self._one(kinds[name], node)
        return getattr(kind.from_dict({key: plain(node)}), name)

    def _one(self, kind: type[Message], node: yaml.Node) -> Message:
        return self._any(node) if kind is Any else self._message(kind, node)

    def _any(self, node: yaml.Node) -> Any:
        """Read what an Any holds, and what a TypedStruct in it stands for."""
        members = dict(self._members(Any, node))
        by_name = {key.value: value for key, value in members.items()}
        url = _text(by_name.get("@type"))
        if url.rpartition("/")[2] in _STRUCTS:
            if {"type_url", "typeUrl"} <= by_name.keys():
                what = "'type_url' again."
                self.findings.append(DUPLICATE_KEY.at(self._at(node), what))
            url = _text(by_name.get("type_url") or by_name.get("typeUrl"))
            content = by_name.get("value")
        else:
            rest = [pair for pair in members.items() if pair[0].value != "@type"]
            content = yaml.MappingNode(node.tag, rest, node.start_mark, node.end_mark)
        packed = self._known(Any(type_url=url), node, {})
        kind = kind_of(url.rpartition("/")[2])
        if kind is None or content is None:
            what = f"No such type is known: {url!r}."
            self.findings.append(UNKNOWN_TYPE.at(self._at(node), what))
        elif is_message(kind):
            self._packed[id(packed)] = self._message(kind, content)
        return packed

    def _known(self, message: M, node: yaml.Node, lines: dict[str, int]) -> M:
        self._origins[id(message)] = _Origin(message, self._file, node, lines)
        return message

    def _at(self, node: yaml.Node) -> Place:
        return Place(self._file, line_of(node))

    @contextmanager
    def _reported(self, node: yaml.Node, what: str) -> Iterator[None]:
        try:
            yield
        except _REFUSALS:
            # The reason may quote the value, and that may be a secret.
            text = f"The value of {what} is none that it can have."
            self.findings.append(UNREADABLE.at(self._at(node), text))


def _items(node: yaml.Node) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        msg = "no list"
        raise TypeError(msg)
    return list(node.value)


def _text(node: yaml.Node | None) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""
