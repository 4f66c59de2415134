"""What the use cases need from the outside; adapters and fakes implement it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from authz.core.limits import Budget, Demand, Limits, Outcome, Recorded
    from authz.core.metering import Finished, Used
    from authz.core.model import Asked, Deny, Key, Request
    from authz.core.parameters import Parameters


@dataclass(frozen=True, slots=True)
class Verified:
    """A key as PostgreSQL had it at ``at`` (UTC)."""

    key: Key
    at: datetime


@dataclass(frozen=True, slots=True)
class NewSecret:
    """What is stored of a raw key; without a pepper, ``pepper_id`` is None.

    ``other_digests`` are those under other peppers: the key may be there already.
    """

    digest: bytes
    prefix: str
    pepper_id: str | None = None
    other_digests: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class NewKey:
    """What is stored of a key on its first day; ``models`` are canonical."""

    id: UUID
    name: str
    owner: str
    models: tuple[str, ...]
    scopes: tuple[str, ...]
    parameters: Parameters
    limits: Limits
    expires_at: datetime | None
    secret: NewSecret

    @property
    def digest(self) -> bytes:
        """What its first secret is found by."""
        return self.secret.digest


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as people see it.

    ``prefix`` is that of its newest secret, ``last_used_at`` that of any, to the
    minute.
    """

    id: UUID
    name: str
    owner: str
    prefix: str
    models: tuple[str, ...]
    scopes: tuple[str, ...]
    parameters: Parameters
    limits: Limits
    expires_at: datetime | None
    disabled: bool
    revoked_at: datetime | None
    created_at: datetime
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """One of a key's secrets as people see it."""

    prefix: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a key shall expire; None is never."""

    at: datetime | None


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """What is to be changed of a key; None leaves it as it is.

    ``limits`` has those that change, by name; None ends one.
    """

    owner: str | None = None
    models: tuple[str, ...] | None = None
    scopes: tuple[str, ...] | None = None
    parameters: Parameters | None = None
    limits: Mapping[str, int | Budget | None] | None = None
    expires: Expiry | None = None
    disabled: bool | None = None


def rfc3339(moment: datetime | None) -> str | None:
    """Write a time for people and programs: in UTC, to the second."""
    if moment is None:
        return None
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


class KeyReader(Protocol):
    """PostgreSQL, which decides. Both raise StoreUnavailable."""

    async def find(self, digests: Sequence[bytes]) -> Key | None:
        """Return the key that one of the digests belongs to, whatever its state."""
        ...


class KeyCache(Protocol):
    """What the replicas share. All raise CacheUnavailable."""

    async def get(self, digests: Sequence[bytes]) -> Verified | None:
        """Return what some replica verified; None if nothing or not genuine."""
        ...

    async def put(self, verified: Verified) -> None:
        """Share what was verified, unless a newer version is there."""
        ...

    async def drop(self, digests: Sequence[bytes]) -> None:
        """Forget."""
        ...


class BodyReader(Protocol):
    """Reads bodies that are too large to be read between two other checks."""

    async def read(self, key_id: str, request: Request) -> Asked | Deny:
        """Return what ``core.decide.read_asked`` says; raises BackendError."""
        ...


class UseLog(Protocol):
    """Remembers which secrets are used, for people to see."""

    def note(self, digest: bytes) -> None:
        """Remember that a secret was used now; takes no time and never fails."""
        ...


class LimitStore(Protocol):
    """What keys have used of their limits. All raise CacheUnavailable."""

    async def reserve(
        self, key_id: str, limits: Limits, demand: Demand, recorded: Recorded | None
    ) -> Outcome | int:
        """Admit or refuse; or return since when what is recorded must be told."""
        ...

    async def settle(self, key_id: str, request_id: str, tokens: int | None) -> bool:
        """End a request that used so many tokens; None keeps what it holds.

        False if it is not known, or was settled before.
        """
        ...

    async def renew(self, key_id: str, request_id: str) -> bool:
        """Keep what a request holds that still runs; False if it is not known."""
        ...

    async def spend(self, key_id: str, begin: int, tokens: int) -> None:
        """Take in what is recorded of a budget; more may have been used since."""
        ...


class UsageLog(Protocol):
    """Records what requests have used."""

    def note(self, finished: Finished, used: Used) -> None:
        """Record a request, once by its id; takes no time and never fails."""
        ...


class UsageRecords(Protocol):
    """What is recorded of finished requests."""

    async def tokens_since(self, key_id: str, begin: int) -> int:
        """Return the tokens of a key since a moment; raises StoreUnavailable."""
        ...


class KeyWriter(Protocol):
    """The keys as an administrator manages them. All raise StoreUnavailable."""

    async def create(self, new: NewKey) -> KeyRecord:
        """Store a key; Refused if the name is taken."""
        ...

    async def create_all(self, keys: Sequence[NewKey]) -> None:
        """Store all of these keys or none; Refused if one is there already."""
        ...

    async def first_taken(self, keys: Sequence[NewKey]) -> int | None:
        """Return the index of the first whose name or secret is there already."""
        ...

    def list(self) -> AsyncIterator[KeyRecord]:
        """Go through all keys, oldest first."""
        ...

    async def show(self, id_or_name: str) -> KeyRecord:
        """Return one key; Refused if there is none or the name is ambiguous."""
        ...

    async def secrets(self, key_id: UUID) -> Sequence[SecretRecord]:
        """Return the secrets of a key, newest first."""
        ...

    async def update(self, id_or_name: str, changes: KeyChanges) -> KeyRecord:
        """Change a living key; Refused if it is revoked."""
        ...

    async def rotate(
        self, id_or_name: str, secret: NewSecret, grace: timedelta
    ) -> KeyRecord:
        """Add a secret to a living key; the others end after the grace at the latest.

        Refused if the key is revoked, or too many of its secrets still live.
        """
        ...

    async def revoke(self, id_or_name: str) -> KeyRecord:
        """End a key for good; ending it again changes nothing."""
        ...
