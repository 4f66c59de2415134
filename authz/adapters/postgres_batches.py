"""Writing in batches: every few seconds in the background, and what is left at the end.

A database that does not answer is no trouble of the requests: what could not be
written is kept, and written when it is back.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from authz.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Write = Callable[[], Awaitable[None]]

WRITE_EVERY_S = 5.0

log = structlog.get_logger()


@asynccontextmanager
async def writing(
    write: Write, trouble: str, soon: asyncio.Event | None = None
) -> AsyncIterator[None]:
    """Write in the background while the block runs, and what is left after it.

    ``trouble`` is what is logged where that fails; ``soon`` is set when the next
    time should not be waited for.
    """
    background = asyncio.create_task(
        _keep_writing(write, trouble, soon or asyncio.Event())
    )
    try:
        yield
    finally:
        background.cancel()
        await asyncio.wait({background})
        await _write_or_log(write, trouble)


async def _keep_writing(write: Write, trouble: str, soon: asyncio.Event) -> None:
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(soon.wait(), WRITE_EVERY_S)
        soon.clear()
        await _write_or_log(write, trouble)


async def _write_or_log(write: Write, trouble: str) -> None:
    try:
        await write()
    except StoreUnavailable as error:
        log.warning(trouble, error=str(error))
