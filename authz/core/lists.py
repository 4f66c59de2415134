"""Model lists, cut down to what a key may use. Pure; whatever is odd is not shown.

Ollama 0.33, api/types.go and openai/openai.go.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from authz.core.body import decode_strictly
from authz.core.names import canonical

if TYPE_CHECKING:
    from authz.core.allowlist import Allowlist

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class _Form:
    """Where an answer has its entries (None: it is one itself), and their names."""

    entries: str | None
    names: tuple[str, ...]


_NATIVE = _Form("models", ("name", "model"))
_FORMS = {
    "/api/tags": _NATIVE,
    "/api/ps": _NATIVE,
    "/v1/models": _Form("data", ("id",)),
    "/v1/models/:model": _Form(None, ("id",)),
}
LISTS = _FORMS.keys()


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False
)


def cut_list(endpoint: str, body: bytes, allowed: Allowlist) -> bytes | None:
    """Return the answer of a list endpoint without what is not allowed.

    ``endpoint`` is the path in the route table. None: the answer is not the
    strict JSON that it should be, or is about a model that is not allowed.
    """
    form = _FORMS.get(endpoint)
    if form is None:
        return None
    try:
        answer = _cut(form, decode_strictly(body), allowed)
        return None if answer is None else _ENCODER.encode(answer).encode()
    except (ValueError, RecursionError):
        return None


def _cut(form: _Form, answer: object, allowed: Allowlist) -> Json | None:
    if not isinstance(answer, dict):
        return None
    if form.entries is None:
        return answer if _may_be_shown(form, answer, allowed) else None
    entries = answer.get(form.entries)
    if not isinstance(entries, list):
        return None
    shown = [entry for entry in entries if _may_be_shown(form, entry, allowed)]
    return answer | {form.entries: shown}


def _may_be_shown(form: _Form, entry: object, allowed: Allowlist) -> bool:
    """Tell whether all the names of an entry are one, and that one is allowed."""
    if not isinstance(entry, dict):
        return False
    names = {_read_name(entry.get(field)) for field in form.names}
    name = names.pop()
    return not names and name is not None and allowed.allows(name)


def _read_name(spelling: object) -> str | None:
    name = canonical(spelling) if isinstance(spelling, str) else None
    return name if isinstance(name, str) else None
