"""What each Python client shows of an error, and whether it asks again."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest

from tests import rows
from tests.clients.drivers import DRIVERS, driver
from tests.clients.failures import LIMITED, ROWS, UUID, failing

if TYPE_CHECKING:
    from tests.gateway import Gateway, Standin
    from tests.rows import Row

NATIVE = ["ollama", "langchain-ollama", "llama-index-llms-ollama"]
OPENAI = ["openai", "openai responses", "langchain-openai"]
RETRIED = [LIMITED, rows.UNAVAILABLE]

RAISED: dict[str, dict[int, type[Exception]]] = {
    "openai": {
        401: openai.AuthenticationError,
        403: openai.PermissionDeniedError,
        404: openai.NotFoundError,
        429: openai.RateLimitError,
        503: openai.APIStatusError,
    },
    "anthropic": {
        401: anthropic.AuthenticationError,
        403: anthropic.PermissionDeniedError,
        404: anthropic.NotFoundError,
        429: anthropic.RateLimitError,
        503: anthropic.InternalServerError,
    },
}


async def shown(
    gateway: Gateway[Standin], name: str, row: Row, kind: type[Exception]
) -> tuple[Any, int]:
    """Chat in vain; give the exception and how many requests were made."""
    async with failing(gateway, row) as (line, key, model):
        async with driver(name, line.url, key) as client:
            with pytest.raises(kind) as raised:
                await client.chat(model)
        return raised.value, line.requests


def assert_told_when_to_ask_again(response: Any, row: Row) -> None:  # noqa: ANN401 - of two packages
    headers = response.headers
    assert headers.get("x-should-retry") == row.headers.get("x-should-retry")
    assert ("retry-after" in headers) == (row.status in {429, 503})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
@pytest.mark.parametrize("name", NATIVE)
async def test_ollamas_package_shows_the_whole_error_object_once(
    gateway: Gateway[Standin], name: str, row: Row
) -> None:
    error, requests = await shown(gateway, name, row, ollama.ResponseError)
    assert (error.status_code, requests) == (row.status, 1)
    text = rf"{{'code': '{row.code}', 'message': '{row.message}', 'request_id': 'ID'}}"
    end = rf" \(status code: {row.status}\)"
    assert re.fullmatch(text.replace("ID", UUID) + end, str(error)), error


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
@pytest.mark.parametrize("name", OPENAI)
async def test_openais_package_shows_the_message_and_has_code_and_id(
    gateway: Gateway[Standin], name: str, row: Row
) -> None:
    kind = RAISED["openai"][row.status]
    error, requests = await shown(gateway, name, row, kind)
    assert str(error) == f"Error code: {row.status} - {row.message}"
    assert (error.status_code, error.code) == (row.status, row.code)
    assert re.fullmatch(UUID, error.request_id)
    assert requests == (3 if row in RETRIED else 1)
    assert_told_when_to_ask_again(error.response, row)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
async def test_anthropics_package_shows_the_whole_body_and_has_the_id(
    gateway: Gateway[Standin], row: Row
) -> None:
    kind = RAISED["anthropic"][row.status]
    error, requests = await shown(gateway, "anthropic", row, kind)
    assert str(error) == f"Error code: {row.status} - {error.body}"
    assert error.body["error"]["message"] == row.message
    assert error.request_id == error.body["error"]["request_id"]
    assert requests == (3 if row in RETRIED else 1)
    assert_told_when_to_ask_again(error.response, row)


async def pieces_until(
    gateway: Gateway[Standin], name: str, kind: type[Exception] | None
) -> tuple[int, str]:
    """Stream until the failure; give how many pieces came, and what it says."""
    key = await gateway.new_key("llama3.1")
    pieces, kinds = 0, (kind,) if kind else ()
    async with driver(name, gateway.url, key) as client:
        try:
            async for piece in client.stream():
                pieces += bool(piece)
        except kinds as error:
            return pieces, str(error)
    assert kind is None
    return pieces, ""


@pytest.mark.parametrize("name", NATIVE)
async def test_an_error_inside_a_native_stream_is_raised_where_it_stands(
    gateway: Gateway[Standin], name: str
) -> None:
    await gateway.upstream.behave(error_after_chunks=3)
    pieces, text = await pieces_until(gateway, name, ollama.ResponseError)
    assert (pieces, text) == (3, "The model server failed. (status code: -1)")


async def error_event(gateway: Gateway[Standin]) -> None:
    """Make the model server send an error as an event of its own."""
    data = b'data: {"error":{"message":"open /root/x: no such file"}}\n\n'
    await gateway.upstream.behave(
        raw_stream=[base64.b64encode(data).decode()], content_type="text/event-stream"
    )


@pytest.mark.parametrize("name", OPENAI)
async def test_an_error_event_is_raised_by_openais_package(
    gateway: Gateway[Standin], name: str
) -> None:
    await error_event(gateway)
    _, text = await pieces_until(gateway, name, openai.APIError)
    assert text == "An error occurred during streaming"


async def test_an_error_event_ends_an_anthropic_stream_without_a_word(
    gateway: Gateway[Standin],
) -> None:
    """It reads only events of the names it knows."""
    await error_event(gateway)
    assert await pieces_until(gateway, "anthropic", None) == (0, "")


@pytest.mark.parametrize("name", [*OPENAI, "anthropic"])
async def test_a_failure_that_ollama_hides_ends_a_v1_stream_without_a_word(
    gateway: Gateway[Standin], name: str
) -> None:
    """Ollama 0.33 has no error frame there: the final event is missing, that is all."""
    await gateway.upstream.behave(error_after_chunks=5)
    pieces, _ = await pieces_until(gateway, name, None)
    assert 0 < pieces < 6


BROKEN_OFF: dict[str, type[Exception]] = {
    **dict.fromkeys(NATIVE, httpx.RemoteProtocolError),
    **dict.fromkeys(OPENAI, openai.APIConnectionError),
    "anthropic": httpx2.RemoteProtocolError,
}


@pytest.mark.parametrize("name", DRIVERS)
async def test_a_stream_that_breaks_off_is_an_error_of_the_connection(
    gateway: Gateway[Standin], name: str
) -> None:
    await gateway.upstream.behave(die="mid_stream")
    pieces, _ = await pieces_until(gateway, name, BROKEN_OFF[name])
    assert pieces < 6
