"""The use case: who is it, then what may it do. Every denial is a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from authz.core.body import is_quickly_read
from authz.core.credential import read_credential
from authz.core.decide import find_permitted, judge, read_asked, usable
from authz.core.limits import estimate
from authz.core.model import Allow, Deny
from authz.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from authz.core.credential import Peppers
    from authz.core.endpoints import Endpoint
    from authz.core.model import Asked, Decision, Key, Request
    from authz.limiter import Limiter
    from authz.lookup import Lookup
    from authz.ports import BodyReader


@dataclass(slots=True)
class Seen:
    """What has come to light of a request, for the line that says why it is refused.

    Filled in while it is decided, so that it is there also where nothing could be.
    ``prefix`` is that of a well-formed key, known or not; ``model`` is canonical.
    """

    prefix: str | None = None
    key_id: str | None = None
    model: str | None = None


class Authorizer:
    """Answers every Check of Envoy."""

    def __init__(
        self,
        lookup: Lookup,
        peppers: Peppers,
        now: Callable[[], datetime],
        large_bodies: BodyReader,
        limiter: Limiter,
    ) -> None:
        self._lookup = lookup
        self._peppers = peppers
        self._now = now
        self._large_bodies = large_bodies
        self._limiter = limiter

    async def authorize(self, request: Request, seen: Seen | None = None) -> Decision:
        """Return the verdict. Raises BackendError where none can be reached.

        What comes to light on the way is put into ``seen``.
        """
        seen = Seen() if seen is None else seen
        key = await self._identify(request, seen)
        if isinstance(key, Deny):
            return key
        endpoint = find_permitted(request, key)
        if isinstance(endpoint, Deny):
            return endpoint
        if request.headers_only:
            return Allow(key, endpoint.path, model=None, final=False)
        asked = await self._read(key, endpoint, request)
        if isinstance(asked, Deny):
            return asked
        seen.model = asked.model
        verdict = judge(endpoint, asked, key)
        if isinstance(verdict, Deny) or not key.limits:
            return verdict
        if not request.id:
            msg = "a request without an id cannot be told from another"
            raise BackendError(msg)
        return await self._limiter.admit(verdict, request.id, estimate(asked.amounts))

    async def _identify(self, request: Request, seen: Seen) -> Key | Deny:
        credential = read_credential(request.headers, self._peppers)
        if isinstance(credential, Deny):
            return credential
        seen.prefix = credential.prefix
        key = await self._lookup.find(credential.digests, request.source)
        if key is not None:
            seen.key_id = key.id
        return usable(key, self._now())

    async def _read(
        self, key: Key, endpoint: Endpoint, request: Request
    ) -> Asked | Deny:
        if not endpoint.model_fields or is_quickly_read(request.body):
            return read_asked(endpoint, request)
        return await self._large_bodies.read(key.id, request)
