"""Making a key: the raw one for its owner, and what is stored of it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack
from uuid import uuid4

from authz.core import credential
from authz.core.credential import Peppers
from authz.core.limits import Limits
from authz.core.parameters import Parameters
from authz.ports import NewKey, NewSecret

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class Grant(TypedDict):
    """Whose a key is, and what it may do."""

    owner: NotRequired[str]
    models: Sequence[str]
    scopes: Sequence[str]
    parameters: NotRequired[Parameters]
    limits: NotRequired[Limits]
    expires_at: datetime | None


def issue(
    name: str, peppers: Peppers | None = None, **grant: Unpack[Grant]
) -> tuple[NewKey, str]:
    """Return what to store and the raw key, which exists nowhere else."""
    secret, raw_key = issue_secret(peppers or Peppers())
    return new_key(name, secret, **grant), raw_key


def issue_secret(peppers: Peppers) -> tuple[NewSecret, str]:
    """Return what to store of a new raw key, and that key."""
    raw_key = credential.mint(secrets.token_bytes(credential.ENTROPY_BYTES))
    return secret_of(raw_key, peppers), raw_key


def secret_of(raw_key: str, peppers: Peppers) -> NewSecret:
    """Return what to store of a raw key."""
    digest, *others = peppers.digests(raw_key)
    return NewSecret(
        digest=digest,
        prefix=raw_key[: credential.PREFIX_LENGTH],
        pepper_id=peppers.current_id,
        other_digests=tuple(others),
    )


def new_key(name: str, secret: NewSecret, **grant: Unpack[Grant]) -> NewKey:
    """Return a new identity with its first secret."""
    return NewKey(
        id=uuid4(),
        name=name,
        owner=grant.get("owner", ""),
        models=tuple(grant["models"]),
        scopes=tuple(grant["scopes"]),
        parameters=grant.get("parameters", Parameters()),
        limits=grant.get("limits", Limits()),
        expires_at=grant["expires_at"],
        secret=secret,
    )
