"""Verified keys in Redis, shared by the replicas.

Whoever can write to Redis must neither mint a key nor bring back an old one: every
entry carries an HMAC-SHA-256 over digest and record, and a record with an older
version never replaces a newer one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, TypedDict

from redis.exceptions import RedisError

from authz.core.allowlist import compiled
from authz.core.model import Key, Scope
from authz.core.parameters import parse_parameters
from authz.errors import CacheUnavailable
from authz.ports import Verified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta

    from redis.asyncio import Redis

TIMEOUT_S = 0.05
_MAC_BYTES = 32

# KEYS[1]: entry. ARGV: version, record, milliseconds to live.
_PUT = """
local there = redis.call('HGET', KEYS[1], 'version')
if there and tonumber(there) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'record', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""


class RedisKeyCache:
    """The KeyCache."""

    def __init__(self, redis: Redis, secret: bytes, lifetime: timedelta) -> None:
        self._redis = redis
        self._secret = secret
        self._lifetime_ms = int(lifetime.total_seconds() * 1000)
        self._put = redis.register_script(_PUT)

    async def get(self, digest: bytes) -> Verified | None:
        """Return what some replica verified; None if nothing or not genuine."""
        async with _translated_errors():
            record = await self._redis.hget(_entry(digest), "record")
        return self._open(digest, record) if isinstance(record, bytes) else None

    async def put(self, digest: bytes, verified: Verified) -> None:
        """Share what was verified, unless a newer version is there."""
        record = self._seal(digest, verified)
        async with _translated_errors():
            await self._put(
                keys=[_entry(digest)],
                args=[verified.key.version, record, self._lifetime_ms],
            )

    async def drop(self, digest: bytes) -> None:
        """Forget."""
        async with _translated_errors():
            await self._redis.unlink(_entry(digest))

    def _seal(self, digest: bytes, verified: Verified) -> bytes:
        text = json.dumps(_to_record(verified)).encode()
        return self._mac(digest, text) + text

    def _open(self, digest: bytes, record: bytes) -> Verified | None:
        mac, text = record[:_MAC_BYTES], record[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(digest, text)):
            return None
        return _from_record(json.loads(text))

    def _mac(self, digest: bytes, text: bytes) -> bytes:
        return hmac.digest(self._secret, digest + text, hashlib.sha256)


@asynccontextmanager
async def _translated_errors() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        raise CacheUnavailable(type(error).__name__) from error


def _entry(digest: bytes) -> str:
    # The number is that of the record's layout: change both together.
    return f"authz:key:2:{digest.hex()}"


class _Record(TypedDict):
    at: str
    id: str
    name: str
    owner: str
    models: list[str]
    scopes: list[str]
    parameters: str
    expires_at: str | None
    disabled: bool
    revoked: bool
    version: int


def _to_record(verified: Verified) -> _Record:
    key = verified.key
    return _Record(
        at=verified.at.isoformat(),
        id=key.id,
        name=key.name,
        owner=key.owner,
        models=list(key.models.patterns),
        scopes=sorted(scope.value for scope in key.scopes),
        parameters=str(key.parameters),
        expires_at=key.expires_at.isoformat() if key.expires_at else None,
        disabled=key.disabled,
        revoked=key.revoked,
        version=key.version,
    )


def _from_record(record: _Record) -> Verified:
    expires_at = record["expires_at"]
    key = Key(
        id=record["id"],
        name=record["name"],
        owner=record["owner"],
        models=compiled(tuple(record["models"])),
        scopes=frozenset(map(Scope, record["scopes"])),
        parameters=parse_parameters(record["parameters"]),
        expires_at=datetime.fromisoformat(expires_at) if expires_at else None,
        disabled=record["disabled"],
        revoked=record["revoked"],
        version=record["version"],
    )
    return Verified(key, datetime.fromisoformat(record["at"]))
