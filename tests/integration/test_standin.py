"""The stand-in answers as Ollama does, to the clients that people use."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import httpx
import ollama
import openai
import pytest

from authz.local.standin import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANSWER = "This is a stand-in for Ollama."
MODEL = "llama3.1"
HELLO = [{"role": "user", "content": "two words"}]
CHAT = {"model": MODEL, "messages": HELLO}


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with listening("127.0.0.1:0") as address:
        yield f"http://{address}"


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=5) as client:
        yield client


@pytest.fixture
async def client(url: str) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(host=url) as client:
        yield client


@pytest.fixture
async def openai_client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="x", max_retries=0
    ) as client:
        yield client


async def received(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = (await http.get("/_standin/requests")).json()
    return records


async def test_ollamas_client_chats_and_streams(
    client: ollama.AsyncClient,
) -> None:
    whole = await client.chat(MODEL, messages=HELLO)
    assert (whole.message.content, whole.done_reason) == (ANSWER, "stop")
    assert (whole.prompt_eval_count, whole.eval_count) == (2, 6)
    chunks = [c async for c in await client.generate(MODEL, "hi", stream=True)]
    assert "".join(c.response or "" for c in chunks) == ANSWER
    assert [c.done for c in chunks] == [False] * 6 + [True]
    assert (chunks[-1].prompt_eval_count, chunks[-1].eval_count) == (1, 6)


async def test_ollamas_client_reads_models_and_embeds(
    client: ollama.AsyncClient,
) -> None:
    assert len((await client.list()).models) == 4
    assert (await client.ps()).models[0].model == "llama3.1:latest"
    assert (await client.show("qwen3:8b")).details is not None
    embedded = await client.embed("nomic-embed-text", input=["a b", "c"])
    assert (len(embedded.embeddings), embedded.prompt_eval_count) == (2, 3)
    assert (await client.embeddings("nomic-embed-text", "a")).embedding
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        await client.chat("nope", messages=HELLO)


@pytest.mark.parametrize("include_usage", [True, False])
async def test_openais_client_sees_usage_only_if_it_asked(
    openai_client: openai.AsyncOpenAI, *, include_usage: bool
) -> None:
    stream = await openai_client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "two words"}],
        stream=True,
        stream_options={"include_usage": include_usage},
    )
    chunks = [chunk async for chunk in stream]
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == ANSWER
    usages = [c.usage.total_tokens for c in chunks if c.usage]
    assert usages == ([8] if include_usage else [])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_the_usage_is_the_last_field_before_done(
    http: httpx.AsyncClient, path: str
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await http.post(path, json=CHAT | {"prompt": "two words"} | options)
    usage = '"usage":{"prompt_tokens":2,"completion_tokens":6,"total_tokens":8}}'
    assert answer.text.endswith(f"{usage}\n\ndata: [DONE]\n\n")
    last = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))
    assert last["choices"] == []


async def test_openais_client_completes_embeds_and_lists(
    openai_client: openai.AsyncOpenAI,
) -> None:
    completion = await openai_client.completions.create(model=MODEL, prompt="a b")
    assert completion.choices[0].text == ANSWER
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 2
    embedded = await openai_client.embeddings.create(model=MODEL, input="a b")
    assert embedded.data[0].embedding == [0.25, -0.5, 0.75]
    assert len([model async for model in openai_client.models.list()]) == 4
    assert (await openai_client.models.retrieve("qwen3:8b")).id == "qwen3:8b"
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        await openai_client.models.retrieve("nope")


async def test_anthropics_events_end_with_the_usage(http: httpx.AsyncClient) -> None:
    body = CHAT | {"max_tokens": 9, "stream": True}
    answer = await http.post("/v1/messages", json=body)
    assert answer.headers["content-type"] == "text/event-stream"
    events = [e.split("data: ") for e in answer.text.split("\n\n") if e]
    assert [e[0] for e in events[-2:]] == [
        "event: message_delta\n",
        "event: message_stop\n",
    ]
    usage = {"input_tokens": 2, "output_tokens": 6}
    assert json.loads(events[-2][1])["usage"] == usage
    whole = (await http.post("/v1/messages", json=CHAT | {"max_tokens": 9})).json()
    assert (whole["content"][0]["text"], whole["usage"]) == (ANSWER, usage)


async def test_openais_client_reads_responses_whole_and_streamed(
    openai_client: openai.AsyncOpenAI,
) -> None:
    whole = await openai_client.responses.create(model=MODEL, input="two words")
    assert (whole.output_text, whole.status) == (ANSWER, "completed")
    stream = await openai_client.responses.create(
        model=MODEL, input=[{"role": "user", "content": "two words"}], stream=True
    )
    events = [event async for event in stream]
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert events[-1].type == "response.completed"
    for response in (whole, events[-1].response):
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.output_tokens) == (2, 6)


async def test_the_events_of_responses_are_named_numbered_and_sorted(
    http: httpx.AsyncClient,
) -> None:
    body = {"model": MODEL, "input": "two words", "stream": True}
    answer = await http.post("/v1/responses", json=body)
    assert answer.headers["content-type"] == "text/event-stream"
    events = [event.split("\ndata: ") for event in answer.text.split("\n\n") if event]
    for number, (name, text) in enumerate(events):
        data = json.loads(text)
        assert f"event: {data['type']}" == name
        assert data["sequence_number"] == number
        assert list(data) == sorted(data)
    assert '"total_tokens":8}},"sequence_number":' in events[-1][1]
    assert "[DONE]" not in answer.text


async def test_a_pull_says_how_it_goes(client: ollama.AsyncClient) -> None:
    steps = [step.status async for step in await client.pull(MODEL, stream=True)]
    assert steps == ["pulling manifest", "success"]
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        await client.pull("nope")


async def test_each_family_has_its_own_error(http: httpx.AsyncClient) -> None:
    body = CHAT | {"model": "nope", "max_tokens": 9}
    message = "model 'nope' not found"
    native = await http.post("/api/chat", json=body)
    assert (native.status_code, native.json()) == (404, {"error": message})
    openai_error = (await http.post("/v1/chat/completions", json=body)).json()
    assert openai_error["error"]["type"] == "not_found_error"
    anthropic_error = (await http.post("/v1/messages", json=body)).json()
    assert anthropic_error["type"] == "error"
    assert anthropic_error["error"]["message"] == message


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"LLaMA3.1:Latest","messages":[{}],"stream":false}',
        b'{"model":"nope","MODEL":"library/llama3.1","messages":[{}]}',
        b'\n{"model":"llama3.1","model":null,"messages":[{}]} trailing',
    ],
)
async def test_a_body_is_read_as_leniently_as_ollama_does(
    http: httpx.AsyncClient, body: bytes
) -> None:
    headers = {"content-encoding": "gzip", "content-type": "text/plain"}
    answer = await http.post("/api/chat", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":1}', b"{}", b"[" * 9999])
async def test_an_unreadable_body_is_400(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/api/chat", content=body)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


async def test_a_name_that_is_no_text_is_not_found(http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/chat", content=b'{"model":"\\ud800"}')
    assert answer.status_code == 404


async def test_an_empty_prompt_only_loads_the_model(http: httpx.AsyncClient) -> None:
    loaded = await http.post("/api/generate", json={"model": MODEL})
    assert loaded.json()["done_reason"] == "load"
    unloaded = await http.post("/api/chat", json={"model": MODEL, "keep_alive": 0})
    assert unloaded.json()["done_reason"] == "unload"


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/", 200, "Ollama is running"),
        ("HEAD", "/", 200, ""),
        ("HEAD", "/api/tags", 200, ""),
        ("HEAD", "/api/ps", 405, ""),
        ("GET", "/api/chat", 405, "405 method not allowed"),
        ("POST", "/api/ch%61t%2F", 404, "404 page not found"),
        ("GET", "/api%2Fversion?x=1", 200, '{"version":"0.33.0"}'),
    ],
)
async def test_paths_and_methods_are_routed_as_gin_does(
    http: httpx.AsyncClient, method: str, path: str, status: int, text: str
) -> None:
    answer = await http.request(method, path)
    assert (answer.status_code, answer.text) == (status, text)


async def test_requests_are_remembered_until_forgotten(http: httpx.AsyncClient) -> None:
    large = b"x" * (1024 * 1024 + 1)
    headers = [("X-One", "1"), ("x-ONE", "2")]
    await http.post("/api/chat?a=%41", content=b"{}", headers=headers)
    await http.post("/nowhere", content=large)
    first, second = await received(http)
    assert (first["method"], first["path"]) == ("POST", "/api/chat?a=%41")
    assert (base64.b64decode(first["body"]), first["size"]) == (b"{}", 2)
    pairs = [pair for pair in first["headers"] if pair[0].lower() == "x-one"]
    assert pairs == [["X-One", "1"], ["x-ONE", "2"]]
    assert second["sha256"] == hashlib.sha256(large).hexdigest()
    assert "body" not in second
    await http.delete("/_standin/requests")
    assert await received(http) == []
