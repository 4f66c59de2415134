"""The key of the first run, so that a new user's first request works as pasted."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from authz.adapters.postgres import connected
from authz.adapters.postgres_keys import PostgresKeyWriter
from authz.core.allowlist import EVERYTHING
from authz.core.model import Scope
from authz.errors import Refused
from authz.issuing import issue
from authz.local.data_dir import write_private

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "demo"
_LIFETIME = timedelta(days=30)


async def make_demo_key(database_url: str, file: Path) -> str | None:
    """Create the key unless its file is there; return it, this once."""
    if file.exists():
        return None
    new, raw_key = issue(
        _NAME,
        models=[EVERYTHING],
        scopes=[Scope.INFERENCE.value, Scope.READ.value],
        expires_at=datetime.now(UTC) + _LIFETIME,
    )
    async with connected(database_url) as connection:
        keys = PostgresKeyWriter(connection)
        try:
            await keys.create(new)
        except Refused:
            # The database is older than this folder: its demo key is lost.
            await keys.revoke(_NAME)
            await keys.create(new)
    write_private(file, f"{raw_key}\n")
    return raw_key


def curl_line(url: str, key: str, model: str) -> str:
    """Return a command that asks a question."""
    body = (
        f'{{"model":"{model}","stream":false,'
        '"messages":[{"role":"user","content":"Hello"}]}'
    )
    return (
        f'curl {url}/api/chat -H "Authorization: Bearer {key}" -d {shlex.quote(body)}'
    )
