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
            self._report(decision, request)
        else:
            self._metrics.allowed.inc()
            if decision.final:
                self._uses.note(decision.key.digest)
        self._metrics.check_seconds.observe(time.perf_counter() - started)
        return response_of(decision)

    async def _decide(self, request: Request) -> Decision:
        try:
            return await self._authorizer.authorize(request)
        except BackendError as error:
            log.warning("undecided", error=repr(error), request_id=_id(request))
        except Exception:
            log.exception("undecided", request_id=_id(request))
        return Deny(Reason.UNDECIDED)

    def _report(self, deny: Deny, request: Request) -> None:
        self._metrics.checks.labels(deny.code.code).inc()
        asked = {"parameter": deny.parameter} if deny.parameter else {}
        reason = deny.reason.value
        log.info("denied", reason=reason, **asked, request_id=_id(request))


def _id(request: Request) -> str | None:
    return request.headers.get("x-request-id")
