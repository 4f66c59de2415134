"""The use case: who is it, then what may it do. Every denial is a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authz.core.credential import read_credential
from authz.core.decide import find_permitted, judge, read_asked, usable
from authz.core.model import Allow, Deny

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from authz.core.model import Decision, Key, Request
    from authz.lookup import Lookup


class Authorizer:
    """Answers every Check of Envoy."""

    def __init__(self, lookup: Lookup, now: Callable[[], datetime]) -> None:
        self._lookup = lookup
        self._now = now

    async def authorize(self, request: Request) -> Decision:
        """Return the verdict. Raises BackendError where none can be reached."""
        key = await self._identify(request)
        if isinstance(key, Deny):
            return key
        endpoint = find_permitted(request, key)
        if isinstance(endpoint, Deny):
            return endpoint
        if request.headers_only:
            return Allow(key, endpoint.path, model=None, final=False)
        asked = read_asked(endpoint, request)
        return asked if isinstance(asked, Deny) else judge(endpoint, asked, key)

    async def _identify(self, request: Request) -> Key | Deny:
        credential = read_credential(request.headers)
        if isinstance(credential, Deny):
            return credential
        key = await self._lookup.find(credential.digest)
        return usable(key, self._now())
