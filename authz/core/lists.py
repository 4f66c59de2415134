"""Model lists, cut down to what a key may use. Pure; what is not known is not shown.

An answer is built anew from the members that Ollama 0.33 has (api/types.go and
openai/openai.go), but for those that tell of another model or host.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from authz.core.body import Json, decode_strictly
from authz.core.names import canonical

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class _Form:
    """What an answer shows of its entries, and where it has them.

    ``names`` are the two members (or one, twice) that must hold the one name of an
    entry, ``details`` those of the object of that name. ``entries`` is None if the
    answer is one itself; ``beside`` stands beside them.
    """

    names: tuple[str, str]
    members: frozenset[str]
    details: frozenset[str] = frozenset()
    entries: str | None = None
    beside: Json = field(default_factory=dict)


_NATIVE, _OPENAI = ("name", "model"), ("id", "id")
_INSTALLED = frozenset(
    {"name", "model", "modified_at", "size", "digest", "capabilities"}
)
_LOADED = frozenset(
    {"name", "model", "size", "digest", "expires_at", "size_vram", "context_length"}
)
_DETAILS = frozenset(
    {"parent_model", "format", "family", "families", "parameter_size"}
    | {"quantization_level", "context_length", "embedding_length"}
)
_MODEL = frozenset({"id", "object", "created", "owned_by"})
_FORMS = {
    "/api/tags": _Form(_NATIVE, _INSTALLED, _DETAILS, "models"),
    "/api/ps": _Form(_NATIVE, _LOADED, _DETAILS, "models"),
    "/v1/models": _Form(_OPENAI, _MODEL, entries="data", beside={"object": "list"}),
    "/v1/models/:model": _Form(_OPENAI, _MODEL),
}
LISTS = _FORMS.keys()

_TEXT = frozenset({str})
_SINGLE = _TEXT | {int, float, bool, type(None)}
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False
)


def cut_list(endpoint: str, body: bytes, allows: Callable[[str], bool]) -> bytes | None:
    """Return the answer of a list endpoint without what is not allowed.

    ``endpoint`` is the path in the route table, ``allows`` is asked for canonical
    names. None: the answer is not the strict JSON that it should be, or is about a
    model that is not allowed.
    """
    form = _FORMS.get(endpoint)
    if form is None:
        return None
    try:
        answer = _cut(form, decode_strictly(body), allows)
        return None if answer is None else _ENCODER.encode(answer).encode()
    except (ValueError, RecursionError):
        return None


def _cut(form: _Form, answer: object, allows: Callable[[str], bool]) -> Json | None:
    if not isinstance(answer, dict):
        return None
    if form.entries is None:
        return answer if _may_be_shown(form, answer, allows) else None
    entries = answer.get(form.entries, "")
    if entries is None:  # Go's way to write an empty list
        entries = []
    if not isinstance(entries, list):
        return None
    shown = [entry for entry in entries if _may_be_shown(form, entry, allows)]
    return form.beside | {form.entries: shown}


def _may_be_shown(form: _Form, entry: object, allows: Callable[[str], bool]) -> bool:
    """Tell whether an entry is of one allowed model; take from it what tells more."""
    if not isinstance(entry, dict):
        return False
    name, model = map(entry.get, form.names)
    if name != model or not _is_allowed(name, allows):
        return False
    details = entry.pop("details", None)
    _strip(entry, form.members)
    if form.details and isinstance(details, dict):
        _strip(details, form.details)
        if not _is_allowed(details.get("parent_model"), allows):
            details["parent_model"] = ""
        entry["details"] = details
    return True


def _is_allowed(spelling: object, allows: Callable[[str], bool]) -> bool:
    name = canonical(spelling) if spelling and isinstance(spelling, str) else None
    return isinstance(name, str) and allows(name)


def _strip(members: Json, known: frozenset[str]) -> None:
    """Leave what is known and a single value or texts: no room for the unknown.

    In place: thousands of copies would cost more than the rest.
    """
    others = [
        member
        for member, value in members.items()
        if member not in known or not (type(value) in _SINGLE or _are_texts(value))
    ]
    for member in others:
        del members[member]


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and _TEXT.issuperset(map(type, value))
