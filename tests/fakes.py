"""In-memory stand-ins for the ports; the contract tests keep them honest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from authz.core.allowlist import Allowlist
from authz.core.model import Key, Scope
from authz.errors import CacheUnavailable, Refused, StoreUnavailable
from authz.limiter import Limiter
from authz.metrics import Metrics
from authz.ports import KeyRecord, SecretRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    from authz.ports import KeyChanges, NewKey, NewSecret, Verified


@dataclass
class FakeClock:
    """A clock that moves when told."""

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class MemoryUsage:
    """UsageRecords; ``broken`` plays failures."""

    tokens: dict[str, int] = field(default_factory=dict)
    broken: bool = False

    async def tokens_since(self, key_id: str, _begin: int) -> int:
        if self.broken:
            raise StoreUnavailable
        return self.tokens.get(key_id, 0)


def own_limiter(now: FakeClock) -> Limiter:
    """Return a Limiter of one process that shares nothing."""
    return Limiter(None, MemoryUsage(), now, Metrics(CollectorRegistry()))


@dataclass
class MemoryKeys:
    """KeyReader and KeyWriter; ``broken`` and ``gate`` play failures.

    ``reached`` is set when a look-up has read its row and waits at the gate.
    """

    records: dict[UUID, KeyRecord] = field(default_factory=dict)
    digests: dict[bytes, UUID] = field(default_factory=dict)
    secret_records: dict[bytes, SecretRecord] = field(default_factory=dict)
    versions: dict[UUID, int] = field(default_factory=dict)
    broken: bool = False
    gate: asyncio.Event | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    async def find(self, digests: Sequence[bytes]) -> Key | None:
        self.asked += 1
        stored = [digest for digest in digests if digest in self.digests]
        digest = stored[0] if stored else b""
        found = self.digests.get(digest)
        key = None if found is None else self._key(found, digest)
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.broken:
            raise StoreUnavailable
        return key

    async def create(self, new: NewKey) -> KeyRecord:
        if await self.first_taken([new]) is not None:
            msg = "the name is taken"
            raise Refused(msg)
        record = KeyRecord(
            id=new.id,
            name=new.name,
            owner=new.owner,
            prefix=new.secret.prefix,
            models=new.models,
            scopes=new.scopes,
            parameters=new.parameters,
            limits=new.limits,
            expires_at=new.expires_at,
            disabled=False,
            revoked_at=None,
            created_at=datetime.now(UTC),
        )
        self.records[new.id] = record
        self.versions[new.id] = 1
        self._add(new.id, new.secret)
        return record

    async def create_all(self, keys: Sequence[NewKey]) -> None:
        names, digests = {key.name for key in keys}, {key.digest for key in keys}
        several = len(names) < len(keys) or len(digests) < len(keys)
        if several or await self.first_taken(keys) is not None:
            msg = "one of the keys is there already"
            raise Refused(msg)
        for key in keys:
            await self.create(key)

    async def first_taken(self, keys: Sequence[NewKey]) -> int | None:
        names = {r.name for r in self.records.values() if r.revoked_at is None}
        for index, key in enumerate(keys):
            digests = {key.digest, *key.secret.other_digests}
            if key.name in names or digests & self.digests.keys():
                return index
        return None

    async def list(self) -> AsyncIterator[KeyRecord]:
        for record in self.records.values():
            yield record

    async def show(self, id_or_name: str) -> KeyRecord:
        found = [
            record
            for record in self.records.values()
            if id_or_name in {str(record.id), record.name}
        ]
        living = [record for record in found if record.revoked_at is None]
        if len(living or found) != 1:
            msg = "there is no such key, or there are several"
            raise Refused(msg)
        return (living or found)[0]

    async def update(self, id_or_name: str, changes: KeyChanges) -> KeyRecord:
        record = await self.show(id_or_name)
        if record.revoked_at is not None:
            msg = "the key is revoked"
            raise Refused(msg)
        fields_ = {name: getattr(changes, name) for name in changes.__slots__}
        given = {name: value for name, value in fields_.items() if value is not None}
        expires = given.pop("expires", None)
        given["limits"] = record.limits.changed(given.pop("limits", {}))
        if expires is not None:
            given["expires_at"] = expires.at
        self.records[record.id] = replace(record, **given)
        self.versions[record.id] += 1
        return self.records[record.id]

    async def revoke(self, id_or_name: str) -> KeyRecord:
        record = await self.show(id_or_name)
        if record.revoked_at is None:
            record = replace(record, revoked_at=datetime.now(UTC))
            self.records[record.id] = record
            self.versions[record.id] += 1
        return record

    async def secrets(self, key_id: UUID) -> Sequence[SecretRecord]:
        return [self.secret_records[digest] for digest in self._digests(key_id)]

    async def rotate(
        self, id_or_name: str, secret: NewSecret, grace: timedelta
    ) -> KeyRecord:
        record, now = await self.show(id_or_name), datetime.now(UTC)
        if record.revoked_at is not None:
            msg = "the key is revoked"
            raise Refused(msg)
        living = {d: self.secret_records[d] for d in self._digests(record.id)}
        living = {d: s for d, s in living.items() if (s.expires_at or now) >= now}
        if grace and len(living) == 3:
            msg = "too many secrets of the key still live"
            raise Refused(msg)
        for digest, old in living.items():
            end = now + grace if grace else old.created_at
            end = min(end, old.expires_at or end)
            self.secret_records[digest] = replace(old, expires_at=end)
        self._add(record.id, secret)
        self.records[record.id] = replace(record, prefix=secret.prefix)
        self.versions[record.id] += 1
        return self.records[record.id]

    def _add(self, key_id: UUID, secret: NewSecret) -> None:
        self.digests[secret.digest] = key_id
        self.secret_records[secret.digest] = SecretRecord(
            secret.prefix, datetime.now(UTC), expires_at=None, last_used_at=None
        )

    def _digests(self, key_id: UUID) -> Sequence[bytes]:
        """Return those of one key, newest first."""
        return [d for d, owner in self.digests.items() if owner == key_id][::-1]

    def _key(self, key_id: UUID, digest: bytes) -> Key:
        record = self.records[key_id]
        ends = record.expires_at, self.secret_records[digest].expires_at
        return Key(
            digest=digest,
            id=str(record.id),
            name=record.name,
            owner=record.owner,
            models=Allowlist(record.models),
            scopes=frozenset(map(Scope, record.scopes)),
            parameters=record.parameters,
            expires_at=min(filter(None, ends), default=None),
            disabled=record.disabled,
            revoked=record.revoked_at is not None,
            version=self.versions[key_id],
            limits=record.limits,
        )


@dataclass
class MemoryCache:
    """KeyCache."""

    entries: dict[bytes, Verified] = field(default_factory=dict)
    broken: bool = False
    drops: asyncio.Queue[Sequence[bytes]] = field(default_factory=asyncio.Queue)

    async def get(self, digests: Sequence[bytes]) -> Verified | None:
        self._fail()
        found = [self.entries[digest] for digest in digests if digest in self.entries]
        return found[0] if found else None

    async def put(self, verified: Verified) -> None:
        self._fail()
        digest = verified.key.digest
        there = self.entries.get(digest)
        if there is None or there.key.version <= verified.key.version:
            self.entries[digest] = verified

    async def drop(self, digests: Sequence[bytes]) -> None:
        self._fail()
        self.drops.put_nowait(digests)
        for digest in digests:
            self.entries.pop(digest, None)

    def _fail(self) -> None:
        if self.broken:
            raise CacheUnavailable
