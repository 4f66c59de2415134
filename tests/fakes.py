"""In-memory stand-ins for the ports; the contract tests keep them honest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from authz.core.allowlist import Allowlist
from authz.core.model import Key, Scope
from authz.errors import CacheUnavailable, Refused, StoreUnavailable
from authz.ports import KeyRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from authz.ports import KeyChanges, NewKey, Verified


@dataclass
class FakeClock:
    """A clock that moves when told."""

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class MemoryKeys:
    """KeyReader and KeyWriter; ``broken`` and ``gate`` play failures.

    ``reached`` is set when a look-up has read its row and waits at the gate.
    """

    records: dict[UUID, KeyRecord] = field(default_factory=dict)
    digests: dict[bytes, UUID] = field(default_factory=dict)
    versions: dict[UUID, int] = field(default_factory=dict)
    broken: bool = False
    gate: asyncio.Event | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0

    async def find(self, digest: bytes) -> Key | None:
        self.asked += 1
        found = self.digests.get(digest)
        key = None if found is None else self._key(found)
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.broken:
            raise StoreUnavailable
        return key

    async def create(self, new: NewKey) -> KeyRecord:
        if any(r.name == new.name and not r.revoked_at for r in self.records.values()):
            msg = "the name is taken"
            raise Refused(msg)
        record = KeyRecord(
            id=new.id,
            name=new.name,
            owner=new.owner,
            prefix=new.prefix,
            models=new.models,
            scopes=new.scopes,
            parameters=new.parameters,
            expires_at=new.expires_at,
            disabled=False,
            revoked_at=None,
            created_at=datetime.now(UTC),
        )
        self.records[new.id] = record
        self.digests[new.digest] = new.id
        self.versions[new.id] = 1
        return record

    async def list(self) -> Sequence[KeyRecord]:
        return list(self.records.values())

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

    def _key(self, key_id: UUID) -> Key:
        record = self.records[key_id]
        return Key(
            id=str(record.id),
            name=record.name,
            owner=record.owner,
            models=Allowlist(record.models),
            scopes=frozenset(map(Scope, record.scopes)),
            parameters=record.parameters,
            expires_at=record.expires_at,
            disabled=record.disabled,
            revoked=record.revoked_at is not None,
            version=self.versions[key_id],
        )


@dataclass
class MemoryCache:
    """KeyCache."""

    entries: dict[bytes, Verified] = field(default_factory=dict)
    broken: bool = False

    async def get(self, digest: bytes) -> Verified | None:
        self._fail()
        return self.entries.get(digest)

    async def put(self, digest: bytes, verified: Verified) -> None:
        self._fail()
        there = self.entries.get(digest)
        if there is None or there.key.version <= verified.key.version:
            self.entries[digest] = verified

    async def drop(self, digest: bytes) -> None:
        self._fail()
        self.entries.pop(digest, None)

    def _fail(self) -> None:
        if self.broken:
            raise CacheUnavailable
