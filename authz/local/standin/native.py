"""Ollama's native routes, in the shapes of Ollama 0.33. Pure, like reply.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from authz.local.standin.reply import (
    CREATED,
    EMBEDDING,
    MODELS,
    TOOL_ARGUMENTS,
    TOOL_ID,
    Call,
    Reply,
    count_words,
    dump,
    inputs,
    installed,
    json_reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from authz.local.standin.reply import Routes

_NDJSON_TYPE = "application/x-ndjson"

_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "8.0B",
    "quantization_level": "Q4_K_M",
}


def _metrics(prompt: int, answer: int) -> dict[str, int]:
    """Build the counts and nanoseconds of a final frame, without those of zero."""
    values = {
        "total_duration": 5_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": prompt,
        "prompt_eval_duration": prompt * 1_000_000,
        "eval_count": answer,
        "eval_duration": answer * 1_000_000,
    }
    return {name: value for name, value in values.items() if value}


def _generate(call: Call) -> Reply:
    model, prompt = installed(call), call.fields.get("prompt")
    if not prompt:
        return _load(call, model, {"response": ""})
    context = {} if call.fields.get("raw") else {"context": [1, 2, 3]}
    final = context | _metrics(count_words(prompt), len(call.pieces))
    return _generation(call, model, _response, final)


def _chat(call: Call) -> Reply:
    model, messages = installed(call), call.fields.get("messages")
    if not messages:
        return _load(call, model, _message(""))
    final = _metrics(count_words(messages), len(call.pieces))
    return _generation(call, model, _message, final)


def _response(text: str, _tool: str = "") -> dict[str, Any]:
    return {"response": text}


def _message(text: str, tool: str = "") -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if tool:
        function = {"index": 0, "name": tool, "arguments": TOOL_ARGUMENTS}
        message["tool_calls"] = [{"id": TOOL_ID, "function": function}]
    return {"message": message}


def _load(call: Call, model: str, empty: dict[str, Any]) -> Reply:
    """Answer a request without a prompt: it only loads or unloads the model."""
    reason = "unload" if call.fields.get("keep_alive") == 0 else "load"
    done = {"done": True, "done_reason": reason}
    return json_reply({"model": model, "created_at": CREATED} | empty | done)


def _generation(
    call: Call,
    model: str,
    wrap: Callable[[str, str], dict[str, Any]],
    final: dict[str, Any],
) -> Reply:
    head = {"model": model, "created_at": CREATED}
    done = {"done": True, "done_reason": "stop"} | final
    if call.fields.get("stream") is False:
        return json_reply(head | wrap(call.text, call.tool) | done)
    chunks = [head | wrap(p, call.tool) | {"done": False} for p in call.pieces]
    return Reply(
        tuple(_line(dump(chunk)) for chunk in [*chunks, head | wrap("", "") | done]),
        _NDJSON_TYPE,
        streamed=True,
        failure=_line(call.error_line),
    )


def _line(text: str) -> bytes:
    return f"{text}\n".encode()


def _embed(call: Call) -> Reply:
    vectors = [EMBEDDING for _ in inputs(call)]
    answer = {"model": installed(call), "embeddings": vectors}
    return json_reply(answer | _metrics(count_words(inputs(call)), 0))


def _embeddings(call: Call) -> Reply:
    installed(call)
    return json_reply({"embedding": EMBEDDING if call.fields.get("prompt") else []})


def _entry(name: str) -> dict[str, Any]:
    digest = f"{MODELS.index(name):064x}"
    size = 4_000_000_000
    return {"name": name, "model": name, "size": size, "digest": digest} | {
        "details": _DETAILS
    }


def _tags(_call: Call) -> Reply:
    models = [_entry(name) | {"modified_at": CREATED} for name in MODELS]
    return json_reply({"models": models})


def _ps(_call: Call) -> Reply:
    running = {"expires_at": CREATED, "size_vram": 0, "context_length": 4096}
    return json_reply({"models": [_entry(MODELS[0]) | running]})


def _show(call: Call) -> Reply:
    name = installed(call, "model", "name")
    return json_reply(
        {
            "modelfile": f"FROM {name}\n",
            "template": "{{ .Prompt }}",
            "details": _DETAILS,
            "model_info": {
                "general.architecture": "llama",
                "llama.context_length": 131072,
            },
            "capabilities": ["completion", "tools"],
            "modified_at": CREATED,
        }
    )


def _pull(call: Call) -> Reply:
    """Say what a pull says; nothing is fetched, so only an installed model succeeds."""
    installed(call, "model", "name")
    steps = [{"status": "pulling manifest"}, {"status": "success"}]
    if call.fields.get("stream") is False:
        return json_reply(steps[-1])
    lines = tuple(_line(dump(step)) for step in steps)
    return Reply(lines, _NDJSON_TYPE, streamed=True, failure=_line(call.error_line))


def _root(_call: Call) -> Reply:
    return Reply((b"Ollama is running",), "text/plain; charset=utf-8")


def _version(_call: Call) -> Reply:
    return json_reply({"version": "0.33.0"})


NATIVE_ROUTES: Routes = {
    "/": (("GET", "HEAD"), _root),
    "/api/version": (("GET", "HEAD"), _version),
    "/api/tags": (("GET", "HEAD"), _tags),
    "/api/ps": (("GET",), _ps),
    "/api/show": (("POST",), _show),
    "/api/pull": (("POST",), _pull),
    "/api/generate": (("POST",), _generate),
    "/api/chat": (("POST",), _chat),
    "/api/embed": (("POST",), _embed),
    "/api/embeddings": (("POST",), _embeddings),
}
