"""Certificates for the tests of TLS, made here: no program or package has to be there.

ECDSA on P-256 (FIPS 186-4, D.1.2.3) and X.509 (RFC 5280), just enough for
OpenSSL's strict checks. The arithmetic takes no care of timing: for tests alone.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    Point = tuple[int, int] | None  # None is the point at infinity

_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BASE = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)

_BOOLEAN, _INTEGER, _BITS, _OCTETS, _OID, _TEXT, _TIME = 1, 2, 3, 4, 6, 12, 23
_SEQUENCE, _SET = 0x30, 0x31
_ALGORITHM = bytes.fromhex("2a8648ce3d040302")  # ecdsa-with-SHA256
_EC_KEY = bytes.fromhex("2a8648ce3d0201")
_P256 = bytes.fromhex("2a8648ce3d030107")
_COMMON_NAME = bytes.fromhex("550403")
_LIFETIME = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority; ``root`` is the file of its own certificate."""

    name: str
    secret: int
    root: Path

    def issue(
        self, folder: Path, *names: str, ends: timedelta = _LIFETIME
    ) -> tuple[Path, Path]:
        """Return the files of a certificate for hosts or a client, and of its key."""
        secret = _new_secret()
        extensions = (
            _names(names),
            _extension(35, _der(_SEQUENCE, _der(0x80, _key_id(self.secret)))),
        )
        certificate = _signed(self, names[0], secret, extensions, ends)
        file = folder / f"{names[0]}.crt"
        file.write_text(_pem("CERTIFICATE", certificate))
        key = folder / f"{names[0]}.key"
        key.write_text(_pem("EC PRIVATE KEY", _private(secret)))
        return file, key


def new_authority(folder: Path, name: str) -> Authority:
    """Make a certificate authority that nobody else trusts."""
    authority = Authority(name, _new_secret(), folder / f"{name}.pem")
    extensions = (
        _extension(19, _der(_SEQUENCE, _der(_BOOLEAN, b"\xff")), critical=True),
        _extension(15, _der(_BITS, b"\x02\x04"), critical=True),  # signs certificates
        _extension(14, _der(_OCTETS, _key_id(authority.secret))),
    )
    certificate = _signed(authority, name, authority.secret, extensions)
    authority.root.write_text(_pem("CERTIFICATE", certificate))
    return authority


def _signed(
    issuer: Authority,
    subject: str,
    secret: int,
    extensions: tuple[bytes, ...],
    ends: timedelta = _LIFETIME,
) -> bytes:
    algorithm = _der(_SEQUENCE, _der(_OID, _ALGORITHM))
    now = datetime.now(UTC)
    content = _der(
        _SEQUENCE,
        _der(0xA0, _integer(2)),  # version 3
        _integer(secrets.randbits(64)),
        algorithm,
        _name(issuer.name),
        _der(_SEQUENCE, _time(now - _LIFETIME), _time(now + ends)),
        _name(subject),
        _der(
            _SEQUENCE,
            _der(_SEQUENCE, _der(_OID, _EC_KEY), _der(_OID, _P256)),
            _bits(_public(secret)),
        ),
        _der(0xA3, _der(_SEQUENCE, *extensions)),
    )
    return _der(_SEQUENCE, content, algorithm, _bits(_sign(issuer.secret, content)))


def _sign(secret: int, content: bytes) -> bytes:
    digest = int.from_bytes(hashlib.sha256(content).digest())
    nonce = _new_secret()
    point = _times(nonce, _BASE)
    assert point is not None
    r = point[0] % _ORDER
    s = pow(nonce, -1, _ORDER) * (digest + r * secret) % _ORDER
    return _der(_SEQUENCE, _integer(r), _integer(s))


def _new_secret() -> int:
    return 1 + secrets.randbelow(_ORDER - 1)


def _public(secret: int) -> bytes:
    point = _times(secret, _BASE)
    assert point is not None
    return b"\x04" + point[0].to_bytes(32) + point[1].to_bytes(32)


def _key_id(secret: int) -> bytes:
    return hashlib.sha256(_public(secret)).digest()[:20]


def _private(secret: int) -> bytes:
    return _der(
        _SEQUENCE,
        _integer(1),
        _der(_OCTETS, secret.to_bytes(32)),
        _der(0xA0, _der(_OID, _P256)),
        _der(0xA1, _bits(_public(secret))),
    )


def _times(factor: int, point: Point) -> Point:
    product: Point = None
    while factor:
        if factor & 1:
            product = _plus(product, point)
        point = _plus(point, point)
        factor >>= 1
    return product


def _plus(one: Point, other: Point) -> Point:
    if one is None or other is None:
        return one or other
    (x, y), (u, v) = one, other
    if x == u and (y + v) % _P == 0:
        return None
    if one == other:
        slope = 3 * (x * x - 1) * pow(2 * y, -1, _P)
    else:
        slope = (v - y) * pow(u - x, -1, _P)
    new_x = (slope * slope - x - u) % _P
    return new_x, (slope * (x - new_x) - y) % _P


def _names(names: tuple[str, ...]) -> bytes:
    return _extension(17, _der(_SEQUENCE, *map(_general_name, names)))


def _general_name(name: str) -> bytes:
    try:
        return _der(0x87, ipaddress.ip_address(name).packed)
    except ValueError:
        return _der(0x82, name.encode())


def _extension(number: int, value: bytes, *, critical: bool = False) -> bytes:
    flag = _der(_BOOLEAN, b"\xff") if critical else b""
    oid = _der(_OID, b"\x55\x1d" + bytes([number]))  # all are 2.5.29.number
    return _der(_SEQUENCE, oid, flag, _der(_OCTETS, value))


def _name(text: str) -> bytes:
    attribute = _der(_SEQUENCE, _der(_OID, _COMMON_NAME), _der(_TEXT, text.encode()))
    return _der(_SEQUENCE, _der(_SET, attribute))


def _time(moment: datetime) -> bytes:
    return _der(_TIME, f"{moment:%y%m%d%H%M%SZ}".encode())


def _integer(number: int) -> bytes:
    return _der(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1))


def _bits(content: bytes) -> bytes:
    return _der(_BITS, b"\x00" + content)


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content


def _pem(kind: str, content: bytes) -> str:
    text = base64.encodebytes(content).decode()
    return f"-----BEGIN {kind}-----\n{text}-----END {kind}-----\n"
