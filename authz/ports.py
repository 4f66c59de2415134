"""What the use cases need from the outside; adapters and fakes implement it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from authz.core.model import Asked, Deny, Key, Request
    from authz.core.parameters import Parameters


@dataclass(frozen=True, slots=True)
class Verified:
    """A key as PostgreSQL had it at ``at`` (UTC)."""

    key: Key
    at: datetime


@dataclass(frozen=True, slots=True)
class NewKey:
    """What is stored of a key on its first day; ``models`` are canonical."""

    id: UUID
    name: str
    owner: str
    models: tuple[str, ...]
    scopes: tuple[str, ...]
    parameters: Parameters
    expires_at: datetime | None
    digest: bytes
    prefix: str


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as people see it; ``prefix`` is that of its newest secret."""

    id: UUID
    name: str
    owner: str
    prefix: str
    models: tuple[str, ...]
    scopes: tuple[str, ...]
    parameters: Parameters
    expires_at: datetime | None
    disabled: bool
    revoked_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """What is to be changed of a key; None leaves it as it is."""

    owner: str | None = None
    models: tuple[str, ...] | None = None
    scopes: tuple[str, ...] | None = None
    parameters: Parameters | None = None


class KeyReader(Protocol):
    """PostgreSQL, which decides. Both raise StoreUnavailable."""

    async def find(self, digest: bytes) -> Key | None:
        """Return the key that a digest belongs to, whatever its state."""
        ...


class KeyCache(Protocol):
    """What the replicas share. All raise CacheUnavailable."""

    async def get(self, digest: bytes) -> Verified | None:
        """Return what some replica verified; None if nothing or not genuine."""
        ...

    async def put(self, digest: bytes, verified: Verified) -> None:
        """Share what was verified, unless a newer version is there."""
        ...

    async def drop(self, digest: bytes) -> None:
        """Forget."""
        ...


class BodyReader(Protocol):
    """Reads bodies that are too large to be read between two other checks."""

    async def read(self, key_id: str, request: Request) -> Asked | Deny:
        """Return what ``core.decide.read_asked`` says; raises BackendError."""
        ...


class KeyWriter(Protocol):
    """The keys as an administrator manages them. All raise StoreUnavailable."""

    async def create(self, new: NewKey) -> KeyRecord:
        """Store a key; Refused if the name is taken."""
        ...

    async def list(self) -> Sequence[KeyRecord]:
        """Return all keys, oldest first."""
        ...

    async def show(self, id_or_name: str) -> KeyRecord:
        """Return one key; Refused if there is none or the name is ambiguous."""
        ...

    async def update(self, id_or_name: str, changes: KeyChanges) -> KeyRecord:
        """Change a living key; Refused if it is revoked."""
        ...

    async def revoke(self, id_or_name: str) -> KeyRecord:
        """End a key for good; ending it again changes nothing."""
        ...
