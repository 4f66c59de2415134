"""The key of the first run, so that a new user's first request works as pasted."""

from __future__ import annotations

import shlex
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_keys import PostgresKeys
from authz.core import credential
from authz.core.allowlist import EVERYTHING
from authz.core.decide import usable
from authz.core.model import Deny, Scope
from authz.errors import Refused
from authz.issuing import issue
from authz.local.data_dir import write_private

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "demo"
_NO_PEPPERS = credential.Peppers()  # and every service finds keys without one
_LIFETIME = timedelta(days=30)


async def make_demo_key(database_url: str, file: Path) -> str | None:
    """Create the key unless the one in the file works; return it, this once."""
    if file.exists() and await _works(database_url, file.read_text().strip()):
        return None
    async with connected(database_url) as connection:
        raw_key = await _create(PostgresKeyWriter(connection))
    write_private(file, f"{raw_key}\n")
    return raw_key


async def _works(database_url: str, raw_key: str) -> bool:
    found = credential.read_credential({"x-api-key": raw_key}, _NO_PEPPERS)
    if isinstance(found, Deny):
        return False
    async with pooled(database_url) as pool:
        key = await PostgresKeys(pool).find(found.digests)
    return not isinstance(usable(key, datetime.now(UTC)), Deny)


async def _create(keys: PostgresKeyWriter) -> str:
    """Take the first free name: the demo keys of others are theirs."""
    for number in count(1):
        new, raw_key = issue(
            _NAME if number == 1 else f"{_NAME}-{number}",
            models=[EVERYTHING],
            scopes=[Scope.INFERENCE.value, Scope.READ.value],
            expires_at=datetime.now(UTC) + _LIFETIME,
        )
        with suppress(Refused):
            await keys.create(new)
            return raw_key
    raise AssertionError


def curl_line(url: str, key: str, model: str) -> str:
    """Return a command that asks a question."""
    body = (
        f'{{"model":"{model}","stream":false,'
        '"messages":[{"role":"user","content":"Hello"}]}'
    )
    return (
        f'curl {url}/api/chat -H "Authorization: Bearer {key}" -d {shlex.quote(body)}'
    )
