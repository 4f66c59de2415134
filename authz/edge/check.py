"""The Check call: translate, decide, translate, count; whatever fails is a 503."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

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
            self._metrics.checks.labels(decision.code.code).inc()
        else:
            self._metrics.allowed.inc()
            if decision.final:
                self._uses.note(decision.key.digest)
        self._metrics.check_seconds.observe(time.perf_counter() - started)
        return response_of(decision)

    async def _decide(self, request: Request) -> Decision:
        """Decide, and write one line of why where a request is refused."""
        try:
            decision = await self._authorizer.authorize(request)
        except BackendError as error:
            decision = Deny(Reason.UNDECIDED)
            log.warning("denied", error=repr(error), **_why(decision, request))
        except Exception:
            decision = Deny(Reason.UNDECIDED)
            log.exception("denied", **_why(decision, request))
        else:
            if isinstance(decision, Deny):
                log.info("denied", **_why(decision, request))
        return decision


def _why(deny: Deny, request: Request) -> dict[str, str | None]:
    asked = {"parameter": deny.parameter} if deny.parameter else {}
    request_id = request.headers.get("x-request-id")
    return {"reason": deny.reason.value, **asked, "request_id": request_id}
