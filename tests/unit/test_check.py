"""What the Check call writes down: one line for a refused request, else none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from authz.authorizer import Seen
from authz.core.credential import PREFIX_LENGTH, mint
from authz.core.model import Deny, Reason, Request
from authz.edge.check import Check
from authz.errors import BackendError, StoreUnavailable
from authz.metrics import Metrics

if TYPE_CHECKING:
    from authz.authorizer import Authorizer
    from authz.core.model import Decision
    from authz.ports import UseLog

REQUEST = Request("POST", "/api/chat", {"x-request-id": "an id"}, b"")
KEY = mint(b"of somebody".ljust(32))
PREFIX, KEY_ID = KEY[:PREFIX_LENGTH], "0b7e6a52-5a4e-4c0e-9d7a-3f2b1c0d9e8f"
AWAY = "the database does not answer: TimeoutError"


class Decided:
    """An Authorizer that has one answer, and has seen something on the way."""

    def __init__(self, answer: Decision | Exception, seen: Seen) -> None:
        self._answer = answer
        self._seen = seen

    async def authorize(self, _request: Request, seen: Seen) -> Decision:
        seen.prefix, seen.key_id = self._seen.prefix, self._seen.key_id
        seen.model = self._seen.model
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def lines_of(
    answer: Decision | Exception,
    seen: Seen | None = None,
    registry: CollectorRegistry | None = None,
    request: Request = REQUEST,
) -> list[Any]:
    authorizer = cast("Authorizer", Decided(answer, seen or Seen()))
    uses = cast("UseLog", None)  # nothing is used
    metrics = Metrics(registry or CollectorRegistry())
    with capture_logs() as lines:
        await Check(authorizer, metrics, uses).answer(request, None)
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
    assert line == {**told, "endpoint": "/api/chat", **said}


@pytest.mark.parametrize(
    ("answer", "seen", "said"),
    [
        (Deny(Reason.KEY_UNKNOWN), Seen(PREFIX), {"key_prefix": PREFIX}),
        (Deny(Reason.KEY_REVOKED), Seen(PREFIX, KEY_ID), {"key_id": KEY_ID}),
        (
            Deny(Reason.MODEL_NOT_LISTED),
            Seen(PREFIX, KEY_ID, "h/n/m:t"),
            {"key_id": KEY_ID, "model": "h/n/m:t"},
        ),
        (StoreUnavailable(AWAY), Seen(PREFIX), {"key_prefix": PREFIX}),
        (Deny(Reason.CREDENTIAL_MISSING), Seen(), {}),
    ],
    ids=["unknown", "revoked", "model", "undecided", "nobody"],
)
async def test_the_line_says_whose_request_it_was_and_what_for(
    answer: Decision | Exception, seen: Seen, said: dict[str, str]
) -> None:
    (line,) = await lines_of(answer, seen)
    whose = ("key_id", "key_prefix", "model")
    assert {name: line[name] for name in whose if name in line} == said


async def test_a_key_in_the_place_of_a_model_is_not_written_down() -> None:
    model = f"registry.ollama.ai/library/{KEY.lower()}:latest"
    lines = await lines_of(Deny(Reason.MODEL_NOT_LISTED), Seen(PREFIX, KEY_ID, model))
    assert KEY.lower() not in str(lines)


async def test_whatever_path_is_asked_for_it_is_counted_as_one_of_few() -> None:
    registry = CollectorRegistry()
    path = "/api/chat/../secret\n" * 100
    (line,) = await lines_of(
        Deny(Reason.PATH_ODD), registry=registry, request=Request("GET", path, {}, b"")
    )
    labels = {"reason": "path_odd", "endpoint": "other"}
    assert registry.get_sample_value("authz_decisions_total", labels) == 1
    assert line["endpoint"] == "other"
