"""What a request has used, by what the gateway saw of it. Pure.

The model server's own counts are taken where there are any. Where there are none,
tokens are estimated, and marked so.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from authz.core.endpoints import ENDPOINTS
from authz.core.limits import estimate
from authz.core.model import Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

# Beyond this a number is none: no answer has as many tokens, bytes or milliseconds.
_LARGEST = 2**31

# No answer, or none in time: the model may have worked all the while.
_WORK_UNKNOWN = frozenset({0, 504})

# A piece of a stream is a token in so many bytes at the most. What is beyond that came
# in one piece, as calls of tools do.
_BYTES_A_CHUNK = 300

_USES_TOKENS = frozenset(
    path for path, endpoint in ENDPOINTS.items() if endpoint.scope is Scope.INFERENCE
)
_ANSWERS_IN_VECTORS = frozenset({"/api/embed", "/api/embeddings", "/v1/embeddings"})
_GENERATES = _USES_TOKENS - _ANSWERS_IN_VECTORS


class Ending(StrEnum):
    """How a request ended."""

    OK = "ok"
    FAILED = "failed"
    ABORTED = "aborted"  # by the client


# Not frozen, nor is Used: setting a field would take four times as long.
@dataclass(slots=True)
class Finished:
    """A request that has ended, as the gateway saw it; its numbers may be any.

    ``request_id`` is another one for every request. ``began`` is in seconds since
    1970. ``input_estimate`` is what was estimated when the request was checked.
    ``chunks`` are the pieces of the answer.
    ``ended`` tells that the answer came to the end that its protocol has, ``failed``
    that the model server put an error into it, ``left`` that the client went before
    the end, ``broken`` that something else cut it off.
    """

    request_id: str
    key_id: str
    owner: str
    endpoint: str
    model: str
    began: int
    status: int = 0
    duration_ms: float = 0
    first_byte_ms: float = 0
    request_bytes: float = 0
    response_bytes: float = 0
    input_estimate: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    chunks: float = 0
    ended: bool = False
    failed: bool = False
    left: bool = False
    broken: bool = False


@dataclass(slots=True)
class Used:
    """What a request is recorded with; ``settled`` is what its limits are charged.

    With ``settled`` None it is not known what the model server did for it: what was
    reserved stays charged.
    """

    ending: Ending
    input_tokens: int
    output_tokens: int
    estimated: bool
    settled: int | None


def input_estimate(amounts: Mapping[str, float]) -> int | None:
    """Return how many tokens an input may have that is not all text.

    None where it is: then the gateway's count of its bytes tells the same.
    """
    if "images" not in amounts:
        return None
    return estimate({name: amounts[name] for name in ("text_bytes", "images")})


def meter(finished: Finished) -> Used:
    """Say what a request has used, and how it ended."""
    counted = _counted(finished)
    ending = _ending(finished, is_complete=finished.ended or counted is not None)
    if finished.endpoint not in _USES_TOKENS:
        return Used(ending, 0, 0, estimated=False, settled=0)
    if counted is not None:
        return Used(ending, *counted, estimated=False, settled=sum(counted))
    if not _succeeded(finished.status) and finished.status not in _WORK_UNKNOWN:
        return Used(ending, 0, 0, estimated=False, settled=0)
    asked = _asked(finished)
    answered = _answered(finished)
    is_known = number(finished.chunks) or ending is Ending.OK
    settled = asked + answered if is_known else None
    return Used(ending, asked, answered, estimated=True, settled=settled)


def recorded_model(finished: Finished) -> str:
    """Return the model, if there is one: only the model server knows, by a 2xx."""
    return finished.model if _succeeded(finished.status) else ""


def number(value: float | None) -> int | None:
    """Return a whole number, None for what cannot be an amount."""
    if value is not None and 0 <= value <= _LARGEST:
        return int(value)
    return None


def _asked(finished: Finished) -> int:
    estimated = number(finished.input_estimate)
    if estimated is not None:
        return estimated
    return estimate({"text_bytes": number(finished.request_bytes) or 0})


def _answered(finished: Finished) -> int:
    if finished.endpoint not in _GENERATES or not _succeeded(finished.status):
        return 0
    chunks = number(finished.chunks) or 0
    beyond = (number(finished.response_bytes) or 0) - chunks * _BYTES_A_CHUNK
    return chunks + estimate({"text_bytes": max(0, beyond)})


def _counted(finished: Finished) -> tuple[int, int] | None:
    asked, answered = number(finished.input_tokens), number(finished.output_tokens)
    return None if asked is None or answered is None else (asked, answered)


def _ending(finished: Finished, *, is_complete: bool) -> Ending:
    if finished.left and not is_complete:
        return Ending.ABORTED
    if finished.failed or not _succeeded(finished.status):
        return Ending.FAILED
    if is_complete:
        return Ending.OK
    # What is generated has an end of its own; of the rest, Envoy sees whether it came.
    if finished.broken or finished.endpoint in _GENERATES:
        return Ending.FAILED
    return Ending.OK


def _succeeded(status: int) -> bool:
    return 200 <= status < 300  # noqa: PLR2004 - 2xx
