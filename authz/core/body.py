"""Bodies, read so strictly that no other reader can read them differently.

Go's decoder matches keys without case, lets the last duplicate win, merges
objects and ignores what follows the first value. Where it and we could differ,
the body is refused instead.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn

from authz.core import names
from authz.core.model import Deny, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from authz.core.endpoints import Endpoint
    from authz.core.model import Request

Json = dict[str, object]

# Some non-ASCII letters fold into ASCII ones (U+017F, U+212A), so a key in any
# other spelling could be one that we look for.
_PLAIN_KEY = re.compile(r"[a-z0-9_$]+")


# Objects, arrays and members cost many times their bytes; a large prompt or image
# costs its bytes. (Signs inside texts count too: the bound is generous.)
_MOST_PARTS = 500_000


class _NotStrictError(ValueError):
    """The text is JSON for some readers only."""


def _unique(pairs: list[tuple[str, object]]) -> Json:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _NotStrictError
    return members


def _refuse(_constant: str) -> NoReturn:
    raise _NotStrictError


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)


def read_body(request: Request) -> Json | Deny:
    """Return the one JSON object that is the whole body."""
    refused = _refused_framing(request.headers, len(request.body))
    if refused:
        return Deny(refused)
    if sum(map(request.body.count, (b"{", b"[", b":"))) > _MOST_PARTS:
        return Deny(Reason.BODY_TOO_COMPLEX)
    try:
        body = _DECODER.decode(request.body.decode("utf-8"))
    except (ValueError, RecursionError):
        return Deny(Reason.BODY_NOT_STRICT_JSON)
    if not isinstance(body, dict):
        return Deny(Reason.BODY_NOT_STRICT_JSON)
    if not all(map(_PLAIN_KEY.fullmatch, body)):
        return Deny(Reason.BODY_ODD_FIELD)
    return body


def read_model(endpoint: Endpoint, body: Json) -> str | Deny:
    """Return the canonical name of the model that the body asks for."""
    present = [body[field] for field in endpoint.model_fields if field in body]
    spellings = [name for name in present if isinstance(name, str)]
    found = {names.canonical(name) for name in spellings if name}
    if not found or len(spellings) < len(present):
        return Deny(Reason.MODEL_MISSING)
    if len(found) > 1:
        return Deny(Reason.MODEL_AMBIGUOUS)
    name = found.pop()
    return Deny(name) if isinstance(name, Reason) else name


def _refused_framing(headers: Mapping[str, str], size: int) -> Reason | None:
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        return Reason.ENCODING_ODD
    if headers.get("content-type", "").lstrip().lower().startswith("multipart/"):
        return Reason.MULTIPART
    if headers.get("x-envoy-auth-partial-body", "false") != "false":
        return Reason.BODY_INCOMPLETE
    if headers.get("content-length", str(size)) != str(size):
        return Reason.BODY_INCOMPLETE
    return None
