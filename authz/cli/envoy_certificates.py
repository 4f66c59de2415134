"""Whether Envoy uses the certificates that it has read last."""

from __future__ import annotations

import ssl
from base64 import b64decode
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SECRETS = ("dynamic_active_secrets", "dynamic_warming_secrets")
_VERSION_TAG = 0xA0
# Of YYYYMMDDHHMMSS, as RFC 5280 may leave out the century.
_DIGITS = 12

Identity = tuple[int, str]


def certificates_in_use(
    configs: Iterable[Mapping[str, Any]], used: Iterable[Mapping[str, Any]]
) -> Mapping[str, bool]:
    """Tell by its name of each secret whether its certificate is in use."""
    in_use = {
        (int(certificate["serial_number"], 16), _digits(certificate["valid_from"]))
        for each in used
        for certificate in (*each["ca_cert"], *each["cert_chain"])
    }
    found: dict[str, bool] = {}
    for secret in chain.from_iterable(
        config.get(kind, ()) for config in configs for kind in _SECRETS
    ):
        certificate = _certificate(secret.get("secret", {}))
        if certificate is not None:
            name = secret["name"]
            found[name] = found.get(name, True) and _identity(certificate) in in_use
    return found


def _certificate(secret: Mapping[str, Any]) -> bytes | None:
    match secret:
        case {"tls_certificate": {"certificate_chain": {"inline_bytes": text}}}:
            return b64decode(text)
        case {"validation_context": {"trusted_ca": {"inline_bytes": text}}}:
            return b64decode(text)
    return None


def _identity(pem: bytes) -> Identity | None:
    """Return serial number and start of the first certificate; None if it is none.

    RFC 5280, section 4.1: version, serial number, signature, issuer, validity.
    """
    try:
        text = pem.decode("ascii", errors="replace")
        end = text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(text[text.index(ssl.PEM_HEADER) : end])
        rest, _ = _element(_element(der)[0])
        if rest[0] == _VERSION_TAG:
            _, rest = _element(rest)
        serial, rest = _element(rest)
        for _ in ("signature", "issuer"):
            _, rest = _element(rest)
        start, _ = _element(_element(rest)[0])
        return int.from_bytes(serial), _digits(start.decode("ascii"))
    except (ValueError, IndexError):
        return None


def _digits(time: str) -> str:
    return "".join(filter(str.isdecimal, time))[-_DIGITS:]


def _element(der: bytes) -> tuple[bytes, bytes]:
    """Split off the first element: its content, and what follows it."""
    length, start = der[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start])
    return der[start : start + length], der[start + length :]
