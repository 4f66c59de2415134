"""What Ollama takes from a body: its two readers, modelled on Go's parse of it.

They answer as Go does, not as the gateway would like; Go 1.26, encoding/json.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from tests.go_json import GoError, Members, parse, rest_is_blank

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.go_json import Json

Fields = dict[str, object]
_T = TypeVar("_T")

# The two that fold into ASCII (simple folding); the rest is ASCII's own.
_FOLDS = {ord(upper): upper.lower() for upper in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_FOLDS |= {0x017F: "s", 0x212A: "k"}


class Kind(Enum):
    """The types of the fields of a struct; whether a null empties one."""

    TEXT = (str, False)
    FLAG = (bool, False)
    OPTIONAL_FLAG = (bool, True)
    MAP = (dict, True)
    LIST = (list, True)

    def __init__(self, python: type, emptied_by_null: bool) -> None:
        self.python = python
        self.emptied_by_null = emptied_by_null


def read_struct(body: bytes, kinds: Mapping[str, Kind]) -> Fields:
    """Decode into a struct with these fields; what the body leaves out is left out.

    The reader of every handler: keys without case, the last wins, null changes
    no text, maps and lists merge, what follows the first value is not read.
    """
    value, _end = parse(body)
    fields: Fields = {}
    for key, member in _members(value):
        name = key.translate(_FOLDS)
        if name in kinds:
            _assign(fields, name, kinds[name], member)
    return fields


def _assign(fields: Fields, name: str, kind: Kind, value: Json) -> None:
    if value is None:
        if kind.emptied_by_null:
            fields.pop(name, None)
    elif kind is Kind.MAP:
        merged = _typed(fields.setdefault(name, {}), dict)
        for key, member in _members(value):
            _refuse_overflow(member)
            merged[key] = member
    elif kind is Kind.LIST:
        before = _typed(fields.get(name, []), list)
        fields[name] = _overlaid(before, _typed(value, list))
    else:
        fields[name] = _typed(value, kind.python)


def _overlaid(before: list[Fields], values: list[Json]) -> list[Fields]:
    """Lay a second list of objects over the first, element by element."""
    elements: list[Fields] = []
    for index, value in enumerate(values):
        element = dict(before[index]) if index < len(before) else {}
        for key, member in _members(value):
            if member is not None:
                element[key.translate(_FOLDS)] = member
        elements.append(element)
    return elements


def _members(value: Json) -> list[tuple[str, Json]]:
    """Return an object's members; a null has none and is no error."""
    return [] if value is None else _typed(value, Members).pairs


def _typed(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise GoError
    return value


def _refuse_overflow(value: Json) -> None:
    """Refuse numbers beyond a float64, which Go skips in unknown fields only."""
    pending = [value]
    while pending:
        match pending.pop():
            case float(number) if number in (float("inf"), float("-inf")):
                raise GoError
            case Members(pairs):
                pending.extend(member for _key, member in pairs)
            case list(values):
                pending.extend(values)


def read_passthrough_model(body: bytes) -> str | None:
    """Return the ``model`` that decides, on ``/v1``, whether a request leaves.

    The second reader takes the exact key from the whole body; None where it
    finds no text there and lets the request through to the first.
    """
    try:
        value, end = parse(body)
        if not rest_is_blank(body, end):
            return None
        models = [member for key, member in _members(value) if key == "model"]
    except GoError:
        return None
    last = models[-1] if models else None
    return last if isinstance(last, str) else None
