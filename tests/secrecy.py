"""What a whole run logs, and the secrets that it is given: never both in one.

Every process of the tests looks at its own logs when all that it started has ended.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from authz.core.credential import Peppers, read_credential
from authz.core.model import Deny

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_KEY = re.compile(rb"nz_[0-9A-Za-z]{49}")
_URLS = ("AUTHZ_DATABASE_URL", "AUTHZ_REDIS_URL")
_FILES = ("AUTHZ_KEY_PEPPER_FILE", "AUTHZ_KEY_OLD_PEPPER_FILES")

secrets: set[bytes] = set()
errors_printed: list[bytes] = []


def remember(environment: Mapping[str, str]) -> None:
    """Note the secrets among these settings of a program."""
    for name in _URLS:
        secrets.add((urlsplit(environment.get(name, "")).password or "").encode())
    secrets.add(environment.get("AUTHZ_CACHE_SECRET", "").encode())
    for name in _FILES:
        for path in map(Path, filter(None, environment.get(name, "").split(","))):
            secrets.add(path.read_bytes().strip() if path.is_file() else b"")


def leaks(text: bytes) -> Iterable[bytes]:
    """Return the raw keys and the known secrets in a text."""
    yield from (found for found in _KEY.findall(text) if _is_key(found.decode()))
    yield from (secret for secret in secrets if len(secret) > 7 and secret in text)


def logs_below(folder: Path) -> list[Path]:
    """Return the logs of the programs that were started there."""
    return sorted(folder.rglob("*.log"))


def assert_nothing_leaked(folder: Path) -> None:
    """Look into every log there, and into what commands printed as errors."""
    for log in logs_below(folder):
        assert not list(leaks(log.read_bytes())), f"a secret is in {log}"
    for printed in errors_printed:
        assert not list(leaks(printed)), f"a secret was printed: {printed!r}"


def _is_key(text: str) -> bool:
    """Tell whether a text is a key that could have been issued."""
    credential = read_credential({"x-api-key": text}, Peppers())
    return not isinstance(credential, Deny)
