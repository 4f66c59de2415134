"""The examples in docs/examples do what they say, as programs of their own."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gateway import Gateway, Standin

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PYTHON = sorted(path.name for path in EXAMPLES.glob("*.py"))
ANSWER = "This is a stand-in for Ollama."


@dataclass(frozen=True, slots=True)
class Ended:
    """What an example left behind."""

    status: int | None
    out: str
    err: str


async def run(*command: str | Path, **variables: str) -> Ended:
    """Run an example to its end, with what it needs in its environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": path, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return Ended(process.returncode, out.decode(), err.decode())


async def example(
    gateway: Gateway[Standin], program: str, name: str, *words: str
) -> Ended:
    """Run an example against the gateway with a key for two models."""
    key = await gateway.new_key("llama3.1,nomic-embed-text,mistral")
    file = EXAMPLES / name
    given = {"GATEWAY_URL": gateway.url, "GATEWAY_KEY": key}
    return await run(program, file, *words, **given)


@pytest.mark.parametrize("name", PYTHON)
async def test_an_example_in_python_chats(gateway: Gateway[Standin], name: str) -> None:
    ended = await example(gateway, sys.executable, name)
    assert (ended.status, ended.err) == (0, "")
    assert ANSWER in ended.out


@pytest.mark.parametrize("name", PYTHON)
async def test_an_example_in_python_says_why_it_was_refused(
    gateway: Gateway[Standin], name: str
) -> None:
    ended = await example(gateway, sys.executable, name, "qwen3:8b")
    assert ended.status == 1
    assert ended.err.startswith("403")
    assert "This key may not use this model." in ended.err
    assert re.search("[0-9a-f]{8}-", ended.err)


@pytest.mark.parametrize("name", ["openai_chat.py", "anthropic_chat.py"])
async def test_an_example_in_python_notices_an_answer_that_is_cut_short(
    gateway: Gateway[Standin], name: str
) -> None:
    await gateway.upstream.behave(error_after_chunks=4)
    key = await gateway.new_key("llama3.1")
    program = (sys.executable, EXAMPLES / name)
    ended = await run(*program, GATEWAY_URL=gateway.url, GATEWAY_KEY=key)
    assert (ended.status, ended.err) == (1, "the answer is incomplete\n")


UNCHANGED = {
    "ollama": (
        "print(ollama.generate('llama3.1', 'Hello').response)",
        {"OLLAMA_HOST": "URL", "OLLAMA_API_KEY": "KEY"},
    ),
    "openai": (
        "print(openai.OpenAI().responses.create(model='llama3.1', input='Hello')"
        ".output_text)",
        {"OPENAI_BASE_URL": "URL/v1", "OPENAI_API_KEY": "KEY"},
    ),
    "anthropic": (
        "print(anthropic.Anthropic().messages.create(model='llama3.1', max_tokens=9,"
        " messages=[{'role': 'user', 'content': 'Hello'}]).content[0].text)",
        {"ANTHROPIC_BASE_URL": "URL", "ANTHROPIC_API_KEY": "KEY"},
    ),
}


@pytest.mark.parametrize("package", UNCHANGED)
async def test_a_program_needs_no_change_only_its_environment(
    gateway: Gateway[Standin], package: str
) -> None:
    program, names = UNCHANGED[package]
    key = await gateway.new_key("llama3.1")
    given = {
        name: value.replace("URL", gateway.url).replace("KEY", key)
        for name, value in names.items()
    }
    code = f"import {package}; {program}"
    ended = await run(sys.executable, "-c", code, **given)
    assert (ended.status, ended.out) == (0, f"{ANSWER}\n"), ended.err


@pytest.mark.curl
async def test_the_example_with_curl_asks_streams_and_is_refused(
    gateway: Gateway[Standin],
) -> None:
    ended = await example(gateway, "bash", "curl.sh")
    assert ended.status == 0, ended.err
    assert ANSWER in ended.out
    assert "data: [DONE]" in ended.out
    assert '"code":"model_not_allowed"' in ended.out
    assert re.search("^x-request-id: ", ended.out, re.MULTILINE)


@pytest.mark.curl
async def test_the_example_for_operators_loads_a_model_and_keeps_no_key(
    gateway: Gateway[Standin],
) -> None:
    script = ("bash", EXAMPLES / "load-model.sh", "llama3.1")
    database = {"AUTHZ_DATABASE_URL": gateway.database_url}
    ended = await run(*script, GATEWAY_URL=gateway.url, **database)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.endswith('{"status":"success"}\n')
    keys = await run("authz", "keys", "list", "--json", **database)
    assert re.search(r'"name": "load-[^}]*"state": "revoked"', keys.out)


@pytest.mark.curl
async def test_the_example_for_operators_keeps_no_key_of_a_failure_either(
    gateway: Gateway[Standin],
) -> None:
    await gateway.upstream.behave(status=500)
    script = ("bash", EXAMPLES / "load-model.sh", "qwen3:8b")
    database = {"AUTHZ_DATABASE_URL": gateway.database_url}
    ended = await run(*script, GATEWAY_URL=gateway.url, **database)
    assert ended.status == 22
    assert '"code":"upstream_error"' in ended.out
    keys = await run("authz", "keys", "list", "--json", **database)
    assert not re.search(r'"name": "load-[^}]*"state": "active"', keys.out)


@pytest.mark.node
@pytest.mark.parametrize(("model", "status"), [("llama3.1", 0), ("qwen3:8b", 1)])
async def test_the_example_in_javascript_chats_or_says_why_not(
    gateway: Gateway[Standin],
    node_modules: Path,
    tmp_path: Path,
    model: str,
    status: int,
) -> None:
    # Node looks for packages beside the file that imports them.
    (tmp_path / "node_modules").symlink_to(node_modules)
    program = tmp_path / "chat.mjs"
    program.write_bytes((EXAMPLES / "chat.mjs").read_bytes())
    key = await gateway.new_key("llama3.1")
    command = ("node", program, model)
    ended = await run(*command, GATEWAY_URL=gateway.url, GATEWAY_KEY=key)
    assert ended.status == status, ended.err
    if status:
        assert "403 model_not_allowed This key may not use this model." in ended.err
    else:
        assert ANSWER in ended.out
