"""What a request has used, by what was seen of it."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.metering import (
    Ending,
    Finished,
    Used,
    input_estimate,
    meter,
    recorded_model,
)

CHAT = Finished(
    request_id="r",
    key_id="k",
    owner="o",
    endpoint="/api/chat",
    model="m",
    began=0,
    status=200,
    request_bytes=41,
    ended=True,
)
ASKED = 11  # by 41 bytes
COUNTS: dict[str, Any] = {"input_tokens": 20, "output_tokens": 300}
OK, FAILED, ABORTED = Ending.OK, Ending.FAILED, Ending.ABORTED
CUT: dict[str, Any] = {"ended": False, "broken": True}
LEFT: dict[str, Any] = {"ended": False, "left": True, "broken": True}


def exactly(ending: Ending, asked: int, answered: int) -> Used:
    return Used(ending, asked, answered, estimated=False, settled=asked + answered)


def about(ending: Ending, asked: int, answered: int, settled: int | None) -> Used:
    return Used(ending, asked, answered, estimated=True, settled=settled)


CASES: list[tuple[dict[str, Any], Used]] = [
    # the server's own counts hold, whatever became of the request
    (COUNTS, exactly(OK, 20, 300)),
    (COUNTS | {"chunks": 7}, exactly(OK, 20, 300)),
    (COUNTS | {"ended": False}, exactly(OK, 20, 300)),
    (COUNTS | LEFT, exactly(OK, 20, 300)),
    (COUNTS | {"failed": True}, exactly(FAILED, 20, 300)),
    ({"input_tokens": 0, "output_tokens": 0}, exactly(OK, 0, 0)),
    # no counts: a token a chunk, and four bytes a token
    ({"chunks": 7}, about(OK, ASKED, 7, ASKED + 7)),
    ({"chunks": 7} | LEFT, about(ABORTED, ASKED, 7, ASKED + 7)),
    ({"chunks": 7} | CUT, about(FAILED, ASKED, 7, ASKED + 7)),
    ({"chunks": 7, "failed": True}, about(FAILED, ASKED, 7, ASKED + 7)),
    # what came in one piece, as the call of a tool does: four bytes a token, too
    ({"chunks": 7, "response_bytes": 2100}, about(OK, ASKED, 7, ASKED + 7)),
    (
        {"chunks": 1, "response_bytes": 100_300},
        about(OK, ASKED, 25_001, ASKED + 25_001),
    ),
    # no answer in time: nobody knows how long the model worked
    (
        {"status": 504, "ended": False, "response_bytes": 130},
        about(FAILED, ASKED, 0, None),
    ),
    ({"chunks": 7, "ended": False}, about(FAILED, ASKED, 7, ASKED + 7)),
    ({}, about(OK, ASKED, 0, ASKED)),
    # or what the check took the input for
    ({"input_estimate": 1003, "chunks": 7}, about(OK, 1003, 7, 1010)),
    ({"input_estimate": 1003, "chunks": 7} | LEFT, about(ABORTED, 1003, 7, 1010)),
    ({"input_estimate": 0}, about(OK, 0, 0, 0)),
    (COUNTS | {"input_estimate": 1003}, exactly(OK, 20, 300)),
    # nobody knows what was done for it: what was reserved stays charged
    (LEFT, about(ABORTED, ASKED, 0, None)),
    (LEFT | {"status": 0}, about(ABORTED, ASKED, 0, None)),
    (CUT, about(FAILED, ASKED, 0, None)),
    (CUT | {"status": 0}, about(FAILED, ASKED, 0, None)),
    # refused or failed by the server before it answered
    ({"status": 404, "ended": False}, exactly(FAILED, 0, 0)),
    ({"status": 502, "ended": False, "broken": True}, exactly(FAILED, 0, 0)),
    # embeddings have no answer in tokens, and no end of their own
    (COUNTS | {"endpoint": "/api/embed", "output_tokens": 0}, exactly(OK, 20, 0)),
    (
        {"endpoint": "/api/embeddings", "chunks": 3, "ended": False},
        about(OK, ASKED, 0, ASKED),
    ),
    ({"endpoint": "/v1/embeddings"} | CUT, about(FAILED, ASKED, 0, None)),
    # no tokens at all
    ({"endpoint": "/api/tags", "ended": False}, exactly(OK, 0, 0)),
    ({"endpoint": "/api/show", "chunks": 7}, exactly(OK, 0, 0)),
    ({"endpoint": "/api/pull", "ended": False, "chunks": 9}, exactly(OK, 0, 0)),
    ({"endpoint": "/api/pull"} | LEFT, exactly(ABORTED, 0, 0)),
    ({"endpoint": "/of/another/version"}, exactly(OK, 0, 0)),
]


@pytest.mark.parametrize(("seen", "used"), CASES)
def test_what_was_used_follows_from_what_was_seen(
    seen: dict[str, Any], used: Used
) -> None:
    assert meter(replace(CHAT, **seen)) == used


@pytest.mark.parametrize("absurd", [-1, nan, inf, -inf, 2.0**31 + 1, 1e300])
def test_absurd_counts_are_none(absurd: float) -> None:
    for name in COUNTS:
        seen = replace(CHAT, **(COUNTS | {name: absurd}))
        assert meter(seen) == about(OK, ASKED, 0, ASKED)
    assert meter(replace(CHAT, chunks=absurd, request_bytes=absurd)).settled == 0


@pytest.mark.parametrize("absurd", [-1, nan, inf, -inf, 2.0**31 + 1, 1e300])
def test_an_absurd_estimate_is_none(absurd: float) -> None:
    assert meter(replace(CHAT, input_estimate=absurd)) == about(OK, ASKED, 0, ASKED)


def test_an_image_is_no_text() -> None:
    amounts = {"text_bytes": 41.0, "images": 2.0, "num_predict": 500.0}
    assert input_estimate(amounts) == 2 * 1000 + ASKED
    assert input_estimate({"text_bytes": 41.0, "num_predict": 500.0}) is None


def test_half_a_count_is_none() -> None:
    assert meter(replace(CHAT, input_tokens=20)) == about(OK, ASKED, 0, ASKED)


@pytest.mark.parametrize("status", [0, 199, 300, 404, 503])
def test_a_model_is_one_only_after_a_2xx(status: int) -> None:
    assert recorded_model(replace(CHAT, status=status)) == ""
    assert recorded_model(CHAT) == "m"


@given(
    st.builds(
        Finished,
        endpoint=st.sampled_from(["/api/chat", "/api/embed", "/api/tags", ""]),
        status=st.integers(0, 2**32 - 1),
    )
)
def test_nothing_that_is_seen_is_too_odd(seen: Finished) -> None:
    used = meter(seen)
    assert 0 <= used.input_tokens <= 2**31
    assert 0 <= used.output_tokens <= 2**31
    if used.settled is not None:
        assert used.settled == used.input_tokens + used.output_tokens
