"""The files of TLS that a store's URL names, and what is wrong with them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """What the options are called in the URLs of a store."""

    roots: str
    certificate: str
    key: str
    password: str


def why_unusable(given: Mapping[str, str], names: TlsOptions) -> str | None:
    """Return what is wrong with the files that are given; None if nothing is."""
    for name in (names.roots, names.certificate, names.key):
        path = given.get(name)
        reason = path and _why_unreadable(Path(path))
        if reason:
            return f"{name}: cannot read {path}: {reason}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    roots, certificate = given.get(names.roots), given.get(names.certificate)
    try:
        if roots:
            context.load_verify_locations(roots)
    except ssl.SSLError:
        return f"{names.roots}: no certificate in {roots}"
    try:
        if certificate:
            # Without a password OpenSSL would ask for it, at the terminal.
            password = given.get(names.password, "")
            context.load_cert_chain(certificate, given.get(names.key), password)
    except ssl.SSLError:
        return f"{names.certificate}: no certificate with its key in {certificate}"
    return None


def _why_unreadable(path: Path) -> str | None:
    try:
        path.open("rb").close()
    except OSError as error:
        return error.strerror
    return None
