"""The Check call: translate, decide, translate, count; whatever fails is a 503."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from authz.authorizer import Seen
from authz.core.credential import holds_key
from authz.core.endpoints import route_of
from authz.core.model import Deny, Reason
from authz.edge.translate import response_of
from authz.errors import BackendError

if TYPE_CHECKING:
    from authz.authorizer import Authorizer
    from authz.core.model import Decision, Request
    from authz.metrics import Metrics
    from authz.ports import UseLog

log = structlog.get_logger()


class Check:
    """envoy.service.auth.v3.Authorization/Check."""

    def __init__(self, authorizer: Authorizer, metrics: Metrics, uses: UseLog) -> None:
        self._authorizer = authorizer
        self._metrics = metrics
        self._uses = uses

    async def answer(self, request: Request, _context: object) -> bytes:
        """Answer one request with a serialised CheckResponse."""
        started = time.perf_counter()
        decision = await self._decide(request)
        if isinstance(decision, Deny):
            self._metrics.denied(decision.reason, route_of(request.path))
        elif decision.final:
            self._metrics.allowed[decision.endpoint].inc()
            self._uses.note(decision.key.digest)
        self._metrics.check_seconds.observe(time.perf_counter() - started)
        return response_of(decision)

    async def _decide(self, request: Request) -> Decision:
        """Decide, and write one line of why where a request is refused."""
        seen = Seen()
        try:
            decision = await self._authorizer.authorize(request, seen)
        except BackendError as error:
            decision = Deny(Reason.UNDECIDED)
            log.warning("denied", error=repr(error), **_why(decision, request, seen))
        except Exception:
            decision = Deny(Reason.UNDECIDED)
            log.exception("denied", **_why(decision, request, seen))
        else:
            if isinstance(decision, Deny):
                log.info("denied", **_why(decision, request, seen))
        return decision


def _why(deny: Deny, request: Request, seen: Seen) -> dict[str, str]:
    """Return what may be written down, as far as it is known."""
    # A key may stand anywhere, also where the name of a model should.
    model = None if seen.model and holds_key(seen.model) else seen.model
    said = {
        "reason": deny.reason.value,
        "parameter": deny.parameter,
        "request_id": request.id,
        "key_id": seen.key_id,
        "key_prefix": None if seen.key_id else seen.prefix,
        "endpoint": route_of(request.path),
        "model": model,
    }
    return {name: value for name, value in said.items() if value}
