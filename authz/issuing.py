"""Making a key: the raw one for its owner, and what is stored of it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING
from uuid import uuid4

from authz.core import credential
from authz.core.parameters import Parameters
from authz.ports import NewKey

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


def issue(
    name: str,
    *,
    owner: str = "",
    models: Sequence[str],
    scopes: Sequence[str],
    parameters: Parameters | None = None,
    expires_at: datetime | None,
) -> tuple[NewKey, str]:
    """Return what to store and the raw key, which exists nowhere else."""
    raw_key = credential.mint(secrets.token_bytes(credential.ENTROPY_BYTES))
    new = NewKey(
        id=uuid4(),
        name=name,
        owner=owner,
        models=tuple(models),
        scopes=tuple(scopes),
        parameters=parameters or Parameters(),
        expires_at=expires_at,
        digest=credential.digest(raw_key),
        prefix=raw_key[: credential.PREFIX_LENGTH],
    )
    return new, raw_key
