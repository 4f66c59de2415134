"""Keys and the headers that carry them. The raw key never leaves this module."""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from authz.core.model import Deny, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ENTROPY_BYTES = 32
PREFIX_LENGTH = 11

_MARK = "nz_"
_RANDOM_DIGITS = 43  # 62**43 > 2**256
_CHECKSUM_DIGITS = 6  # 62**6 > 2**32
_SHAPE = re.compile(rf"{_MARK}[0-9A-Za-z]{{{_RANDOM_DIGITS + _CHECKSUM_DIGITS}}}")
_BEARER = "bearer "
# Two digits at a time: a checksum is made for every request.
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)


@dataclass(frozen=True, slots=True)
class Credential:
    """What may be kept of a presented key: its SHA-256."""

    digest: bytes


def mint(entropy: bytes) -> str:
    """Make a raw key of 32 random bytes."""
    if len(entropy) != ENTROPY_BYTES:
        msg = f"a key takes {ENTROPY_BYTES} random bytes"
        raise ValueError(msg)
    start = _MARK + _base62(int.from_bytes(entropy), _RANDOM_DIGITS)
    return start + _checksum(start)


def digest(raw_key: str) -> bytes:
    """Return the 32 bytes under which a key is stored."""
    return hashlib.sha256(raw_key.encode("ascii")).digest()


def read_credential(headers: Mapping[str, str]) -> Credential | Deny:
    """Find the one key that a request presents, without any I/O.

    It stands in ``Authorization: Bearer`` (RFC 6750) or ``X-Api-Key`` (which
    Anthropic's SDK sends), or in both if they are equal.
    """
    authorization = headers.get("authorization")
    api_key = headers.get("x-api-key") or None
    if authorization is None and api_key is None:
        return Deny(Reason.CREDENTIAL_MISSING)
    raw_key = api_key if authorization is None else _bearer(authorization)
    if raw_key is None or (api_key is not None and api_key != raw_key):
        return Deny(Reason.CREDENTIAL_MALFORMED)
    if not _is_well_formed(raw_key):
        return Deny(Reason.CREDENTIAL_MALFORMED)
    return Credential(digest(raw_key))


def _bearer(authorization: str) -> str | None:
    scheme, raw_key = authorization[: len(_BEARER)], authorization[len(_BEARER) :]
    return raw_key if scheme.lower() == _BEARER else None


def _is_well_formed(raw_key: str) -> bool:
    if not _SHAPE.fullmatch(raw_key):
        return False
    start = raw_key[:-_CHECKSUM_DIGITS]
    return raw_key[-_CHECKSUM_DIGITS:] == _checksum(start)


def _checksum(start: str) -> str:
    rest, last = divmod(zlib.crc32(start.encode("ascii")), len(_PAIRS))
    first, middle = divmod(rest, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[middle] + _PAIRS[last]


def _base62(number: int, digits: int) -> str:
    text = ""
    for _ in range(digits):
        number, digit = divmod(number, len(ALPHABET))
        text = ALPHABET[digit] + text
    return text
