"""The keys in PostgreSQL as the commands reach them, and in whose name."""

from __future__ import annotations

import os
import pwd
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from authz.adapters.postgres import connected, refusing_the_hopeless
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_keys import check_peppers
from authz.adapters.postgres_schema import check_schema
from authz.config import parse_duration
from authz.errors import Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from authz.adapters.postgres import Connection
    from authz.config import Settings
    from authz.core.credential import Peppers
    from authz.ports import KeyWriter


@asynccontextmanager
async def current_schema(settings: Settings) -> AsyncIterator[Connection]:
    """Connect to a database whose schema this version knows."""
    url = settings.database_url.get_secret_value()
    with refusing_the_hopeless(url):
        async with connected(url) as connection:
            await check_schema(connection)
            yield connection


@asynccontextmanager
async def key_writer(
    settings: Settings, peppers: Peppers | None = None
) -> AsyncIterator[KeyWriter]:
    """Connect to the keys; changes are written down for who runs the command.

    ``peppers`` are given where secrets are made: with others than those of the
    secrets there, the service would not find them. Raises ConfigError.
    """
    async with current_schema(settings) as connection:
        if peppers is not None:
            await check_peppers(connection, peppers.ids)
        yield PostgresKeyWriter(connection, settings.actor or _user_and_host())


def refuse_beyond(
    longest: str, expires_at: datetime | None, advice: str, where: str = ""
) -> None:
    """Raise Refused where AUTHZ_KEY_MAX_LIFETIME asks for an earlier expiry."""
    if not longest:
        return
    if expires_at is None or expires_at > datetime.now(UTC) + parse_duration(longest):
        msg = f"{where}AUTHZ_KEY_MAX_LIFETIME asks for {advice} of at most {longest}"
        raise Refused(msg)


def _user_and_host() -> str:
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # containers run under users that have no name
        user = str(uid)
    return f"{user}@{socket.gethostname()}"
