"""Changes of keys as PostgreSQL announces them; losing the line is announced too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from authz.adapters.postgres import connected, translated_errors
from authz.errors import StoreUnavailable

if TYPE_CHECKING:
    from typing import Protocol

    from authz.adapters.postgres import Connection

    class Listener(Protocol):
        """Who wants to know."""

        async def changed(self, digest: bytes) -> None: ...  # noqa: D102
        def listening(self) -> None: ...  # noqa: D102
        def deaf(self) -> None: ...  # noqa: D102


CHANNEL = "authz_keys"
HEARTBEAT_S = 0.5
HEARTBEAT_TIMEOUT_S = 0.5
RECONNECT_S = 0.5

log = structlog.get_logger()


async def follow_changes(url: str, listener: Listener) -> None:
    """Keep the listener informed until cancelled; reconnects by itself."""
    while True:
        try:
            async with connected(url) as connection:
                await _listen(connection, listener)
        except StoreUnavailable as error:
            log.warning("notifications_lost", error=str(error))
        await asyncio.sleep(RECONNECT_S)


async def _listen(connection: Connection, listener: Listener) -> None:
    under_way: set[asyncio.Task[None]] = set()

    def on_notification(*notification: object) -> None:
        digest = _digest(str(notification[-1]))
        if digest is not None:
            task = asyncio.create_task(listener.changed(digest))
            under_way.add(task)
            task.add_done_callback(under_way.discard)

    with translated_errors():
        await connection.add_listener(CHANNEL, on_notification)
        listener.listening()
        try:
            while True:
                await connection.execute("SELECT 1", timeout=HEARTBEAT_TIMEOUT_S)
                await asyncio.sleep(HEARTBEAT_S)
        finally:
            listener.deaf()


def _digest(payload: str) -> bytes | None:
    """Read a payload; any role may send one, so it may be anything."""
    try:
        return bytes.fromhex(payload)
    except ValueError:
        return None
