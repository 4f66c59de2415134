"""The corpus against our gateway, before a recorder of raw bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.corpus import judge
from tests.corpus.cases import Case, load
from tests.corpus.exchange import exchange
from tests.upstream import answer

if TYPE_CHECKING:
    from tests.gateway import Gateway
    from tests.upstream import RawUpstream

    RawGateway = Gateway[RawUpstream]

CASES = {case.name: case for case in load()}
# As a list of models, or as one model, it is about none that is not allowed.
ANSWER = answer(200, '{"id":"llama3.1","models":[],"data":[]}')


@pytest.fixture(scope="session")
async def key(shared_raw_gateway: RawGateway) -> str:
    return await shared_raw_gateway.new_key("llama3.1")


@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_what_is_forwarded_is_what_was_authorised(
    raw: RawGateway, key: str, case: Case, in_pieces: bool
) -> None:
    raw.upstream.script = ANSWER
    address = ("127.0.0.1", raw.port)
    outcome = await exchange(
        address, case.request(key), case.patience_s, in_pieces=in_pieces
    )
    received = raw.upstream.received
    assert outcome.steps == case.expect
    assert judge.id_faults(outcome) == []
    assert judge.forwarding_faults(received, outcome, key) == []
    assert judge.forwarded_id_faults(received, outcome) == []
    assert judge.header_faults(received, case) == []
    assert judge.stray_headers(received) == set()
    assert judge.summaries(received) == case.authorised(key)


async def test_the_next_request_finds_a_clean_connection(
    raw: RawGateway, key: str
) -> None:
    """Whatever a case left behind in the way to the model server, it ends here."""
    good = CASES["framing: content-length"]
    for case in CASES.values():
        await exchange(("127.0.0.1", raw.port), case.request(key), 1, in_pieces=False)
        raw.upstream.reset()
        await exchange(("127.0.0.1", raw.port), good.request(key), 20, in_pieces=False)
        assert judge.summaries(raw.upstream.received) == good.authorised(key), case.name
