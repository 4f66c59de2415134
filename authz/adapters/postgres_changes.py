"""Changes of keys as PostgreSQL announces them; losing the line is announced too."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from authz.adapters.postgres import connected, translated_errors
from authz.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from authz.adapters.postgres import Connection

    class Listener(Protocol):
        """Who wants to know."""

        def changed(self, digest: bytes) -> None: ...  # noqa: D102
        def listening(self) -> None: ...  # noqa: D102
        def deaf(self) -> None: ...  # noqa: D102


CHANNEL = "authz_keys"
_DIGEST = re.compile("[0-9a-f]{64}")
# When something has changed, in milliseconds since 1970.
MOMENTS = "authz_keys_at"
_MOMENT = re.compile("[0-9]{13}")
HEARTBEAT_S = 0.5
HEARTBEAT_TIMEOUT_S = 0.5
RECONNECT_S = 0.5

log = structlog.get_logger()


async def follow_changes(
    url: str, listener: Listener, told: Callable[[float], None] | None = None
) -> None:
    """Keep the listener informed until cancelled; reconnects by itself.

    ``told`` takes the moments of changes, in seconds since 1970, as they are heard of.
    """
    while True:
        try:
            async with connected(url) as connection:
                if told is not None:
                    await _listen_to_moments(connection, told)
                await _listen(connection, url, listener)
        except StoreUnavailable as error:
            log.warning("notifications_lost", error=str(error))
        await asyncio.sleep(RECONNECT_S)


async def _listen(connection: Connection, url: str, listener: Listener) -> None:
    trial, arrived = uuid4().hex, asyncio.Event()

    def on_notification(*notification: object) -> None:
        payload = str(notification[-1])
        if payload == trial:
            arrived.set()
        elif _DIGEST.fullmatch(payload):  # any role may send one, of anything
            listener.changed(bytes.fromhex(payload))

    # A line that breaks is noticed at once; one that hangs, by the heartbeat.
    ended = asyncio.Event()
    connection.add_termination_listener(lambda _: ended.set())
    with translated_errors():
        async with asyncio.timeout(HEARTBEAT_TIMEOUT_S):
            await connection.add_listener(CHANNEL, on_notification)
        await _try(url, trial, arrived)
        listener.listening()
        try:
            while True:
                await connection.execute("SELECT 1", timeout=HEARTBEAT_TIMEOUT_S)
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), HEARTBEAT_S)
        finally:
            listener.deaf()


async def _listen_to_moments(
    connection: Connection, told: Callable[[float], None]
) -> None:
    def on_notification(*notification: object) -> None:
        payload = str(notification[-1])
        if _MOMENT.fullmatch(payload):
            told(int(payload) / 1000)

    with translated_errors():
        async with asyncio.timeout(HEARTBEAT_TIMEOUT_S):
            await connection.add_listener(MOMENTS, on_notification)


async def _try(url: str, trial: str, arrived: asyncio.Event) -> None:
    """Make sure that notifications reach a line on which nothing is asked.

    Behind a pool in transaction mode they do not, and nothing else tells so. A pool
    passes on what comes with an answer: the trial is sent on a line of its own.
    """
    async with connected(url) as other:
        await other.execute(f"NOTIFY {CHANNEL}, '{trial}'", timeout=HEARTBEAT_TIMEOUT_S)
    try:
        await asyncio.wait_for(arrived.wait(), HEARTBEAT_TIMEOUT_S)
    except TimeoutError:
        msg = "notifications do not arrive: a pool in transaction mode keeps them"
        raise StoreUnavailable(msg) from None
