"""Ollama's package for JavaScript against the gateway, as a program of Node.js."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.failures import ROWS, UUID, failing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.gateway import Gateway, Standin
    from tests.rows import Row

    Do = Callable[..., Awaitable[dict[str, Any]]]

pytestmark = pytest.mark.node
PROGRAM = Path(__file__).with_name("client.mjs")


@pytest.fixture
def do(tmp_path: Path, node_modules: Path) -> Do:
    """Run the program once; gives what it printed."""
    # Node looks for packages beside the file that imports them.
    (tmp_path / "node_modules").symlink_to(node_modules)
    program = tmp_path / PROGRAM.name
    program.write_bytes(PROGRAM.read_bytes())

    async def run(url: str, key: str, action: str, model: str) -> dict[str, Any]:
        environment = {"GATEWAY_URL": url, "GATEWAY_KEY": key}
        process = await asyncio.create_subprocess_exec(
            *("node", program, action, model),
            env={"PATH": os.environ["PATH"], **environment},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        return dict(json.loads(out))

    return run


@pytest.mark.parametrize(
    ("action", "model", "result"),
    [
        ("list", "", ["llama3.1:latest", "nomic-embed-text:latest"]),
        ("show", "llama3.1", "llama"),
        ("chat", "llama3.1", "This is a stand-in for Ollama."),
        ("stream", "llama3.1", ["This", " is", " a", " stand-in", " for", " Ollama."]),
        ("embed", "nomic-embed-text", [0.25, -0.5, 0.75]),
    ],
)
async def test_does_what_people_do(
    gateway: Gateway[Standin], do: Do, action: str, model: str, result: object
) -> None:
    key = await gateway.new_key("llama3.1,nomic-embed-text")
    assert await do(gateway.url, key, action, model) == {"result": result}


async def test_calls_a_tool(gateway: Gateway[Standin], do: Do) -> None:
    key = await gateway.new_key("llama3.1")
    await gateway.upstream.behave(tool_call=True)
    called = (await do(gateway.url, key, "tool", "llama3.1"))["result"]
    assert (called["name"], called["arguments"]) == ("weather", {"city": "Paris"})


async def test_an_abort_ends_the_work_behind(gateway: Gateway[Standin], do: Do) -> None:
    key = await gateway.new_key("llama3.1")
    await gateway.upstream.behave(chunks=100_000, chunk_delay_s=0.01)
    assert (await do(gateway.url, key, "abort", "llama3.1"))["name"] == "AbortError"
    async with asyncio.timeout(10):
        while not (await gateway.upstream.received())[0]["left"]:
            pass


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.code)
async def test_the_error_object_is_shown_as_a_text_that_says_nothing_and_kept(
    gateway: Gateway[Standin], do: Do, row: Row
) -> None:
    async with failing(gateway, row) as (line, key, model):
        error = await do(line.url, key, "chat", model)
        requests = line.requests
    assert (error["name"], error["message"]) == ("ResponseError", "[object Object]")
    assert (error["status_code"], requests) == (row.status, 1)
    assert (error["inner"]["code"], error["inner"]["message"]) == (
        row.code,
        row.message,
    )
    assert re.fullmatch(UUID, error["inner"]["request_id"])


async def test_an_error_inside_a_stream_is_shown(
    gateway: Gateway[Standin], do: Do
) -> None:
    key = await gateway.new_key("llama3.1")
    await gateway.upstream.behave(error_after_chunks=3)
    error = await do(gateway.url, key, "stream", "llama3.1")
    assert error == {"name": "Error", "message": "The model server failed."}
