"""What holds for every case: one id an answer, and nothing forwarded but the allowed.

Bodies are read here as leniently as the most lenient model server would read them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from authz.core.endpoints import ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from authz.core.endpoints import Endpoint
    from tests.corpus.cases import Case
    from tests.corpus.exchange import Outcome
    from tests.raw import Answer
    from tests.upstream import Received

ALLOWED_MODELS = {"llama3.1", "llama3.1:latest"}
# What our listener.yaml lets travel; the rest is how HTTP/1.1 frames a request.
FORWARDED = {"accept", "content-type", "user-agent", "x-request-id"}
FORWARDED |= {"traceparent", "tracestate"}
FORWARDED |= {"host", "content-length", "transfer-encoding"}
_CREDENTIALS = {"authorization", "x-api-key", "proxy-authorization", "cookie"}


def id_faults(outcome: Outcome) -> list[str]:
    """Name every final answer without one id of its own, the same in all places."""
    final = [answer for answer in outcome.answers if answer.status >= 200]
    if outcome.probe:
        final.append(outcome.probe)
    ids = [answer.all("x-request-id") for answer in final]
    faults = [f"ids {ids}"] if any(len(one) != 1 for one in ids) else []
    if len({tuple(one) for one in ids}) < len(ids):
        faults.append(f"an id twice: {ids}")
    for answer in final:
        places = [answer.all("x-request-id"), answer.all("request-id")]
        if answer.status >= 400 and answer is not outcome.probe:
            places.append([answer.error["request_id"]])
        if any(place != places[0] for place in places):
            faults.append(f"ids differ: {places}")
    return faults


def forwarding_faults(
    received: Sequence[Received], outcome: Outcome, key: str
) -> list[str]:
    """Name everything in what the recorder got that was not authorised."""
    allowed = [answer for answer in outcome.answers if 200 <= answer.status < 300]
    faults = [fault for request in received for fault in _faults(request, key)]
    if len(received) != len(allowed):
        faults.append(f"{len(received)} forwarded, {len(allowed)} answered by 2xx")
    return faults


def forwarded_id_faults(received: Sequence[Received], outcome: Outcome) -> list[str]:
    """Name every forwarded request whose one id is not that of its answer."""
    answered = [_ids(answer) for answer in outcome.answers if answer.status == 200]
    forwarded = [
        [value for name, value in fields(request) if name == "x-request-id"]
        for request in received
    ]
    return [] if forwarded == answered else [f"ids {forwarded}, answers {answered}"]


def header_faults(received: Sequence[Received], case: Case) -> list[str]:
    """Name every header that has to travel, or not to, and does otherwise."""
    return [
        f"{name}: {request.headers.get(name)!r}"
        for request in received
        for name, value in case.headers.items()
        if request.headers.get(name) != value
    ]


def stray_headers(received: Sequence[Received]) -> set[str]:
    """Return the names of headers that our gateway has no reason to forward."""
    return {name for request in received for name, _ in fields(request)} - FORWARDED


def verdict(case: Case, outcome: Outcome) -> str:
    """Compare by statuses: ``same``, ``safe`` (as listed, or nothing allowed more)
    or ``UNSAFE``.
    """
    got = _statuses(outcome.steps)
    if got == _statuses(case.expect):
        return "same"
    if got in map(_statuses, case.safe):
        return "safe"
    return "safe" if _successes(got) <= _successes(case.expect) else "UNSAFE"


def summaries(received: Sequence[Received]) -> list[bytes]:
    """Return what the recorder got in the form of ``forwarded`` of a case."""
    return [
        b" ".join([*request.head.split(b" ", 2)[:2], request.body])
        for request in received
    ]


def fields(request: Received) -> list[tuple[str, str]]:
    """Return the header fields of a forwarded request, doubles included."""
    lines = request.head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return [(name.lower(), value.strip()) for name, _, value in pairs]


def _faults(request: Received, key: str) -> Iterator[str]:
    method, target, _ = request.head.decode("latin-1").split(" ", 2)
    names = [name for name, _ in fields(request)]
    if _CREDENTIALS & set(names) or key.encode() in request.head + request.body:
        yield f"a credential in {names}"
    if len({"content-length", "transfer-encoding"} & set(names)) > 1:
        yield "two lengths"
    if any(names.count(name) > 1 for name in ("host", "content-length")):
        yield f"doubles in {names}"
    endpoint = _endpoint(target)
    if endpoint is None or method not in endpoint.methods:
        yield f"{method} {target} is no route"
    elif endpoint.model_fields and not _names_allowed(request.body):
        yield f"another model in {request.body!r}"
    elif not endpoint.model_fields and request.body:
        yield f"a body: {request.body!r}"


def _endpoint(target: str) -> Endpoint | None:
    folder, _, last = target.rpartition("/")
    if folder == "/v1/models":
        return ENDPOINTS["/v1/models/:model"] if last in ALLOWED_MODELS else None
    return ENDPOINTS.get(target)


def _names_allowed(body: bytes) -> bool:
    """Take every spelling of the key and every double: any of them may win."""
    decoder = json.JSONDecoder(object_pairs_hook=tuple)
    try:
        members, _ = decoder.raw_decode(body.decode(errors="replace").lstrip())
    except ValueError:
        return False
    if not isinstance(members, tuple):
        return False
    named = {str(value) for name, value in members if name.casefold() == "model"}
    return bool(named) and {name.strip().lower() for name in named} <= ALLOWED_MODELS


def _ids(answer: Answer) -> list[str]:
    return answer.all("x-request-id")


def _statuses(steps: Sequence[str]) -> list[str]:
    return [step.split(" ")[0] for step in steps]


def _successes(statuses: Sequence[str]) -> int:
    return sum(status.startswith("2") for status in statuses)
