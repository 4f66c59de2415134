"""What the Check call writes down: one line for a refused request, else none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from authz.core.model import Deny, Reason, Request
from authz.edge.check import Check
from authz.errors import BackendError, StoreUnavailable
from authz.metrics import Metrics

if TYPE_CHECKING:
    from authz.authorizer import Authorizer, Seen
    from authz.core.model import Decision
    from authz.ports import UseLog

REQUEST = Request("POST", "/api/chat", {"x-request-id": "an id"}, b"")
AWAY = "the database does not answer: TimeoutError"


class Decided:
    """An Authorizer that has one answer."""

    def __init__(self, answer: Decision | Exception) -> None:
        self._answer = answer

    async def authorize(self, _request: Request, seen: Seen) -> Decision:
        seen.prefix, seen.model = "nz_abcdefgh", "m"
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def lines_of(answer: Decision | Exception) -> list[Any]:
    authorizer = cast("Authorizer", Decided(answer))
    uses = cast("UseLog", None)  # nothing is used
    with capture_logs() as lines:
        await Check(authorizer, Metrics(CollectorRegistry()), uses).answer(
            REQUEST, None
        )
    return cast("list[Any]", lines)


@pytest.mark.parametrize(
    ("answer", "level", "said"),
    [
        (Deny(Reason.KEY_UNKNOWN), "info", {"reason": "key_unknown"}),
        (
            Deny(Reason.PARAMETER_BEYOND, parameter="num_ctx"),
            "info",
            {"reason": "parameter_beyond", "parameter": "num_ctx"},
        ),
        (
            StoreUnavailable(AWAY),
            "warning",
            {"reason": "undecided", "error": f"StoreUnavailable('{AWAY}')"},
        ),
        (
            BackendError("the reader has ended"),
            "warning",
            {"reason": "undecided", "error": "BackendError('the reader has ended')"},
        ),
        (KeyError("a bug"), "error", {"reason": "undecided", "exc_info": True}),
    ],
    ids=["denied", "parameter", "store", "reader", "bug"],
)
async def test_a_refused_request_is_one_line_with_id_reason_and_what_failed(
    answer: Decision | Exception, level: str, said: dict[str, object]
) -> None:
    (line,) = await lines_of(answer)
    told = {"event": "denied", "request_id": "an id", "log_level": level}
    seen = {"endpoint": "/api/chat", "key_prefix": "nz_abcdefgh", "model": "m"}
    assert line == {**told, **seen, **said}
