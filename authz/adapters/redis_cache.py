"""Verified keys in Redis, shared by the replicas.

Whoever can write to Redis must neither mint a key nor bring back an old one: every
entry carries an HMAC-SHA-256 over its name and record, and a record with an older
version never replaces a newer one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, TypedDict

from authz.adapters.redis_client import TIMEOUT_S, in_time, translated_errors
from authz.core.allowlist import compiled
from authz.core.limits import parse_limits
from authz.core.model import Key, Scope
from authz.core.parameters import parse_parameters
from authz.errors import CacheUnavailable
from authz.ports import Verified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import timedelta

    from authz.adapters.redis_client import Client

# The layout of a record, part of its name: change both together. So a replica of
# another release neither reads nor overwrites what it would misread.
_LAYOUT = 4
_MAC_BYTES = 32

# What the driver raises where it stumbles over an answer that no Redis gives.
_NOT_REDIS = (ValueError, TypeError, LookupError, RecursionError)

# A key with the most patterns has some 100 KiB; what is longer is not shared.
_MOST_BYTES = 256 * 1024
_VERSION_DIGITS = 20

# An entry is the version, so that this can compare it, and the sealed record.
# KEYS[1]: entry. ARGV: version, record, milliseconds to live.
_PUT = """
local there = redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1)
if there > ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'PX', ARGV[3])
return 1
"""


class RedisKeyCache:
    """The KeyCache."""

    def __init__(self, redis: Client, secret: bytes, lifetime: timedelta) -> None:
        self._redis = redis
        self._secret = secret
        self._lifetime_ms = int(lifetime.total_seconds() * 1000)

    async def get(self, digests: Sequence[bytes]) -> Verified | None:
        """Return what some replica verified; None if nothing or not genuine."""
        async with (
            _answered(),
            self._redis.pipeline(transaction=False) as pipe,
        ):
            for digest in digests:
                # Never more than an entry of ours may have, however long it was made.
                pipe.getrange(entry_name(digest), 0, _MOST_BYTES - 1)
            entries = await pipe.execute()
        opened = map(self._open, digests, entries)
        return next((verified for verified in opened if verified is not None), None)

    async def put(self, verified: Verified) -> None:
        """Share what was verified, unless a newer version is there."""
        record = self._seal(verified)
        if len(record) > _MOST_BYTES - _VERSION_DIGITS:
            return
        version = str(verified.key.version).zfill(_VERSION_DIGITS)
        name = entry_name(verified.key.digest)
        async with _answered():
            await self._redis.eval(_PUT, 1, name, version, record, self._lifetime_ms)

    async def drop(self, digests: Sequence[bytes]) -> None:
        """Forget."""
        async with (
            _answered(),
            self._redis.pipeline(transaction=False) as pipe,
        ):
            for digest in digests:
                pipe.execute_command("UNLINK", entry_name(digest))
            await pipe.execute()

    def _seal(self, verified: Verified) -> bytes:
        text = json.dumps(_to_record(verified)).encode()
        return self._mac(verified.key.digest, text) + text

    def _open(self, digest: bytes, entry: object) -> Verified | None:
        if not isinstance(entry, bytes):
            return None
        record = entry[_VERSION_DIGITS:]
        mac, text = record[:_MAC_BYTES], record[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(digest, text)):
            return None
        return _from_record(digest, json.loads(text))

    def _mac(self, digest: bytes, text: bytes) -> bytes:
        name = entry_name(digest).encode()
        return hmac.digest(self._secret, name + text, hashlib.sha256)


@asynccontextmanager
async def _answered() -> AsyncIterator[None]:
    with translated_errors():
        async with in_time(TIMEOUT_S):
            try:
                yield
            except _NOT_REDIS as error:
                raise CacheUnavailable(type(error).__name__) from error


def entry_name(digest: bytes) -> str:
    """Return the name under which Redis has the record of a key."""
    return f"authz:key:{_LAYOUT}:{digest.hex()}"


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
    limits: str


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
        limits=str(key.limits),
    )


def _from_record(digest: bytes, record: _Record) -> Verified:
    expires_at = record["expires_at"]
    key = Key(
        digest=digest,
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
        limits=parse_limits(record["limits"]),
    )
    return Verified(key, datetime.fromisoformat(record["at"]))
