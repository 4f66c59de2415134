"""A change of a key: made as a whole or not at all, or said to be unknown."""

from __future__ import annotations

from contextlib import asynccontextmanager
from shlex import quote
from typing import TYPE_CHECKING

from authz.adapters.postgres import translated_errors
from authz.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from authz.adapters.postgres import Connection


@asynccontextmanager
async def changing(connection: Connection, id_or_name: str) -> AsyncIterator[None]:
    """Run the block in a transaction. Raises StoreUnavailable.

    What is to be told of the change must be read within the block: once the change is
    made, nothing may fail any more. ``id_or_name`` is the key that a person can look
    at where the connection ends while the database commits.
    """
    is_committing = False
    try:
        with translated_errors():
            async with connection.transaction():
                yield
                is_committing = True
    except StoreUnavailable as error:
        if not is_committing:
            raise
        msg = (
            "the database was lost before it confirmed: it is unknown whether the "
            f"change was made; `authz keys show {quote(id_or_name)}` tells"
        )
        raise StoreUnavailable(msg) from error
