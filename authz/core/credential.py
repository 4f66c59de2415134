"""Keys and the headers that carry them. The raw key never leaves this module."""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from typing import TYPE_CHECKING, NamedTuple

from authz.core.model import Deny, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ENTROPY_BYTES = 32
PREFIX_LENGTH = 11

_MARK = "nz_"
_RANDOM_DIGITS = 43  # 62**43 > 2**256
_CHECKSUM_DIGITS = 6  # 62**6 > 2**32
_SHAPE = re.compile(rf"{_MARK}[0-9A-Za-z]{{{_RANDOM_DIGITS + _CHECKSUM_DIGITS}}}")
_ID_BYTES = 6
# Two digits at a time: a checksum is made for every request.
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)


class Credential(NamedTuple):
    """What may be kept of a presented key: the digests that it may be stored under.

    ``prefix`` is what people know it by.
    """

    digests: tuple[bytes, ...]
    prefix: str


class Peppers:
    """The secrets that are mixed into digests: a stolen table alone proves no key.

    New keys are stored under the current one. A key stays under the pepper that it
    was stored with, or under none, so those are tried too.
    """

    __slots__ = ("_peppers", "current_id", "ids")

    def __init__(
        self, current: bytes | None = None, older: Sequence[bytes] = ()
    ) -> None:
        self._peppers = tuple(dict.fromkeys((current, *older, None)))
        self.current_id = None if current is None else _pepper_id(current)
        self.ids = frozenset(_pepper_id(p) for p in self._peppers if p is not None)

    def digest(self, raw_key: str) -> bytes:
        """Return the 32 bytes under which a new key is stored."""
        return _digest(raw_key.encode("ascii"), self._peppers[0])

    def digests(self, raw_key: str) -> tuple[bytes, ...]:
        """Return all that a key may be stored under, the likeliest first."""
        key = raw_key.encode("ascii")
        if len(self._peppers) == 1:
            return (hashlib.sha256(key).digest(),)
        return tuple([_digest(key, pepper) for pepper in self._peppers])


def holds_key(text: str) -> bool:
    """Tell whether a text that is kept, and shown, has a raw key in it."""
    return _SHAPE.search(text) is not None


def mint(entropy: bytes) -> str:
    """Make a raw key of 32 random bytes."""
    if len(entropy) != ENTROPY_BYTES:
        msg = f"a key takes {ENTROPY_BYTES} random bytes"
        raise ValueError(msg)
    start = _MARK + _base62(int.from_bytes(entropy), _RANDOM_DIGITS)
    return start + _checksum(start)


def read_credential(headers: Mapping[str, str], peppers: Peppers) -> Credential | Deny:
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
    return Credential(peppers.digests(raw_key), raw_key[:PREFIX_LENGTH])


def _digest(key: bytes, pepper: bytes | None) -> bytes:
    if pepper is None:
        return hashlib.sha256(key).digest()
    return hmac.digest(pepper, key, "sha256")


def _pepper_id(pepper: bytes) -> str:
    """Tell peppers apart in public; who knows it knows nothing of the pepper."""
    return hmac.digest(pepper, b"authz pepper id", "sha256")[:_ID_BYTES].hex()


def _bearer(authorization: str) -> str | None:
    scheme, _, raw_key = authorization.partition(" ")
    return raw_key if scheme.lower() == "bearer" else None


def _is_well_formed(raw_key: str) -> bool:
    if not _SHAPE.fullmatch(raw_key):
        return False
    return raw_key.endswith(_checksum(raw_key[:-_CHECKSUM_DIGITS]))


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
