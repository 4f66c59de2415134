"""Bodies, read so strictly that no other reader can read them differently.

Go's decoder matches keys without case, lets the last duplicate win, merges
objects and ignores what follows the first value. Where it and we could differ,
the body is refused instead.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from authz.core import names
from authz.core.model import Deny, Reason

if TYPE_CHECKING:
    from authz.core.endpoints import Endpoint
    from authz.core.model import Request

Json = dict[str, object]

# Some non-ASCII letters fold into ASCII ones (U+017F, U+212A), so a key in any
# other spelling could be one that we look for.
_PLAIN_KEYS = re.compile(r"[a-z0-9_$]*")
# What JSON takes for white space.
_SPACE = " \t\n\r"

# What is read at once, while other checks wait: 3 ms at most.
_QUICK_BYTES = 64 * 1024
_QUICK_PARTS = 4_000
# Values cost many times their bytes; a large prompt or image costs its bytes.
# (Signs inside texts count too: the bound is generous.)
_NO_SIGNS = bytes(set(range(256)) - set(b"{[:,"))
_MOST_PARTS = 500_000
# JSON schemas of tools and formats nest some dozens deep.
_DEEPEST = 200
_MOST_DIGITS = 100
_SLICE_BYTES = 64 * 1024
# Stands in texts for what is not looked at. As a sign of its own it may stand there,
# too; a key that has it is read in full.
_MASK = "\x7f"
_FEW = 1000
_BROKEN_ESCAPE = re.compile(rb"\\u(?![0-9a-fA-F]{4})")


class _NotStrictError(ValueError):
    """The text is JSON for some readers only."""


class _UnclearKeyError(ValueError):
    """A key that has to be read in full to be compared with others."""


def _unique(pairs: list[tuple[str, object]]) -> Json:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _NotStrictError
    return members


def _unique_to_go(pairs: list[tuple[str, object]]) -> Json:
    members = _unique(pairs)
    # Go reads every lone surrogate as U+FFFD, which may make two keys one.
    "".join(members).encode()
    return members


def _unique_ascii(pairs: list[tuple[str, object]]) -> Json:
    if not all(key.isascii() and _MASK not in key for key, _ in pairs):
        raise _UnclearKeyError
    return _unique(pairs)


def _integer(digits: str) -> int:
    # Reading an integer takes time with the square of its length.
    if len(digits) > _MOST_DIGITS:
        raise _NotStrictError
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _NotStrictError
    return number


def _refuse(_constant: str) -> NoReturn:
    raise _NotStrictError


_decoder = partial(
    json.JSONDecoder, parse_int=_integer, parse_float=_finite, parse_constant=_refuse
)
_UNIQUE = _decoder(object_pairs_hook=_unique)
_UNIQUE_TO_GO = _decoder(object_pairs_hook=_unique_to_go)
_UNIQUE_ASCII = _decoder(object_pairs_hook=_unique_ascii)


def decode_strictly(text: bytes) -> object:
    """Return the one value of a JSON text. Raises ValueError, RecursionError."""
    return _decode(_UNIQUE_TO_GO, text.decode("utf-8"))


def _decode_compactly(text: bytes) -> object:
    """Decode strictly, with every sign beyond ASCII as some signs of one byte.

    One emoji would make Python keep four bytes for each sign of its text. What we
    look for is ASCII, and reads the same.
    """
    if not text.isascii():
        _refuse_broken_utf8(text)
    # A lone sign is found several times faster than two.
    if b"\\" not in text or b"\\u" not in text:
        return _decode(_UNIQUE, text.decode("latin-1"))
    try:
        return _decode(_UNIQUE_ASCII, _mask_wide_escapes(text).decode("latin-1"))
    except _UnclearKeyError:
        return decode_strictly(text)


def _decode(decoder: json.JSONDecoder, text: str) -> object:
    """Return the one value; faster than ``decode``, which uses expressions."""
    text = text.strip(_SPACE)
    value: object
    value, end = decoder.raw_decode(text)
    if end != len(text):
        raise _NotStrictError
    return value


def _mask_wide_escapes(text: bytes) -> bytes:
    """Make escapes beyond U+00FF plain text of the same length."""
    mask = _MASK.encode()
    # First those of a backslash: what follows them is no escape.
    text = text.replace(b"\\\\", mask * 2)
    narrow = b"\\" + mask
    if narrow in text or _has_broken_escape(text):
        raise _NotStrictError
    text = text.replace(b"\\u00", narrow).replace(b"\\u", mask + b"u")
    return text.replace(narrow, b"\\u00")


def _has_broken_escape(text: bytes) -> bool:
    at = text.find(b"\\u")
    for _ in range(_FEW):
        if at < 0 or _BROKEN_ESCAPE.match(text, at):
            return at >= 0
        at = text.find(b"\\u", at + 2)
    # To find them in this way is faster where they are many, slower in a long text.
    return at >= 0 and _BROKEN_ESCAPE.search(text, at) is not None


def _refuse_broken_utf8(text: bytes) -> None:
    at = 0
    while at < len(text):
        piece = text[at : at + _SLICE_BYTES]
        is_last = at + len(piece) == len(text)
        at += codecs.utf_8_decode(piece, "strict", is_last)[1]


def is_quickly_read(body: bytes | memoryview) -> bool:
    """Tell whether a body is so small and simple that nobody has to wait for it."""
    return len(body) <= _QUICK_BYTES and len(_signs(bytes(body))) <= _QUICK_PARTS


def _signs(text: bytes) -> bytes:
    """Leave out all but what begins and divides values; one pass, short results.

    A short text stays as it is: it has no more signs than bytes.
    """
    return text if len(text) <= _QUICK_PARTS else text.translate(None, _NO_SIGNS)


def read_body(request: Request) -> Json | Deny:
    """Return the one JSON object that is the whole body."""
    refused = refused_framing(request)
    if refused:
        return Deny(refused)
    text = bytes(request.body)
    signs = _signs(text)
    if len(signs) > _MOST_PARTS:
        return Deny(Reason.BODY_TOO_COMPLEX)
    body = _parse(text)
    if isinstance(body, Deny):
        return body
    opened = signs.count(b"{") + signs.count(b"[")
    if opened > _DEEPEST and _is_too_deep(body):
        return Deny(Reason.BODY_TOO_COMPLEX)
    if "" in body or not _PLAIN_KEYS.fullmatch("".join(body)):
        return Deny(Reason.BODY_ODD_FIELD)
    return body


def read_models(endpoint: Endpoint, body: Json) -> tuple[str, ...] | Deny:
    """Return the canonical names that a body holds, first what it is about."""
    groups = endpoint.names
    if endpoint.optional_fields:
        groups += tuple((field,) for field in endpoint.optional_fields if field in body)
    models = []
    for fields in groups:
        name = _read_name(fields, body)
        if isinstance(name, Deny):
            return name
        models.append(name)
    return tuple(models)


def _read_name(fields: tuple[str, ...], body: Json) -> str | Deny:
    """Read one name that may stand in several fields, if they agree on it."""
    found = set()
    for field in fields:
        spelling = body.get(field, "")
        if not isinstance(spelling, str):
            return Deny(Reason.MODEL_MISSING)
        if spelling:
            found.add(names.canonical(spelling))
    if not found:
        return Deny(Reason.MODEL_MISSING)
    if len(found) > 1:
        return Deny(Reason.MODEL_AMBIGUOUS)
    name = found.pop()
    return name if isinstance(name, str) else Deny(name)


def refused_framing(request: Request) -> Reason | None:
    """Tell why the bytes of a body may not be all that was sent, as it was sent."""
    headers, size = request.headers, str(len(request.body))
    encoding = headers.get("content-encoding")
    if encoding is not None and encoding.strip().lower() != "identity":
        return Reason.ENCODING_ODD
    if headers.get("content-type", "").lstrip().lower().startswith("multipart/"):
        return Reason.MULTIPART
    if headers.get("x-envoy-auth-partial-body", "false") != "false":
        return Reason.BODY_INCOMPLETE
    if headers.get("content-length", size) != size:
        return Reason.BODY_INCOMPLETE
    return None


def _parse(text: bytes) -> Json | Deny:
    try:
        body = _decode_compactly(text)
    except RecursionError:  # several times deeper than what we take
        return Deny(Reason.BODY_TOO_COMPLEX)
    except ValueError:
        return Deny(Reason.BODY_NOT_STRICT_JSON)
    if not isinstance(body, dict):
        return Deny(Reason.BODY_NOT_STRICT_JSON)
    return body


def _is_too_deep(body: Json) -> bool:
    level: list[Json | list[object]] = [body]
    for _ in range(_DEEPEST):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, (dict, list))
        ]
    return bool(level)
