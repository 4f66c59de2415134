"""OpenAI's routes, in the shapes and the order of fields of Ollama 0.33. Pure.

There is no error frame: a stream that fails ends early, after one empty chunk.
"""

from __future__ import annotations

import base64
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

from authz.local.standin.reply import (
    CREATED_UNIX,
    EMBEDDING,
    MODELS,
    TOOL_ARGUMENTS,
    TOOL_ID,
    Call,
    Reply,
    Unanswerable,
    count_words,
    dump,
    event_data,
    inputs,
    installed,
    v1_reply,
    v1_stream,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from authz.local.standin.reply import Routes

_DONE = b"data: [DONE]\n\n"
_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def openai_error(error: Unanswerable) -> Reply:
    """Build the error body that OpenAI's clients read."""
    kind = _ERROR_TYPES.get(error.status, "api_error")
    body = {"message": error.message, "type": kind, "param": None, "code": None}
    return v1_reply({"error": body}, error.status)


def _head(identity: str, kind: str, model: str) -> dict[str, Any]:
    return {
        "id": identity,
        "object": kind,
        "created": CREATED_UNIX,
        "model": model,
        "system_fingerprint": "fp_ollama",
        "choices": [],
    }


def _completion_head(model: str, *, streamed: bool) -> dict[str, Any]:
    head = _head("cmpl-1", "text_completion", model)
    if streamed:  # in these chunks alone the choices stand before the model
        for name in ("model", "system_fingerprint"):
            head[name] = head.pop(name)
    return head


def _usage(prompt: int, answer: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def _chat_completions(call: Call) -> Reply:
    model, messages = installed(call), call.fields.get("messages")
    if not messages:
        raise Unanswerable(400, "[] is too short - 'messages'")
    usage = _usage(count_words(messages), len(call.pieces))
    end = {"finish_reason": "tool_calls" if call.tool else "stop"}
    if not call.fields.get("stream"):
        choice = _said("message", call.tool, call.text) | end
        head = _head("chatcmpl-1", "chat.completion", model)
        return v1_reply(head | {"choices": [choice], "usage": usage})
    head = _head("chatcmpl-1", "chat.completion.chunk", model)
    last = {"index": 0, "delta": {}} | end
    return _stream(call, head, partial(_said, "delta", call.tool), last, usage)


def _completions(call: Call) -> Reply:
    streamed = bool(call.fields.get("stream"))
    head = _completion_head(installed(call), streamed=streamed)
    usage = _usage(count_words(call.fields.get("prompt")), len(call.pieces))
    if not streamed:
        choice = _text(call.text) | {"finish_reason": "stop"}
        return v1_reply(head | {"choices": [choice], "usage": usage})
    if _wants_usage(call):
        head |= {"usage": _usage(0, 0)}
    last = _text("") | {"finish_reason": "stop"}
    return _stream(call, head, _text, last, usage)


def _said(kind: str, tool: str, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if tool:
        function = {"name": tool, "arguments": dump(TOOL_ARGUMENTS)}
        called = {"id": TOOL_ID, "index": 0, "type": "function", "function": function}
        message["tool_calls"] = [called]
    return {"index": 0, kind: message}


def _text(text: str) -> dict[str, Any]:
    return {"text": text, "index": 0}


def _wants_usage(call: Call) -> bool:
    options = call.fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _stream(
    call: Call,
    head: dict[str, Any],
    wrap: Callable[[str], dict[str, Any]],
    last: dict[str, Any],
    usage: dict[str, int],
) -> Reply:
    def chunk(choice: dict[str, Any]) -> bytes:
        return event_data(head | {"choices": [choice]})

    unfinished = {"finish_reason": None}
    frames = [chunk(wrap(piece) | unfinished) for piece in call.pieces]
    frames.append(chunk(last))
    if _wants_usage(call):
        frames.append(event_data(head | {"choices": [], "usage": usage}))
    return v1_stream([*frames, _DONE], failure=chunk(wrap("") | unfinished))


def _embeddings(call: Call) -> Reply:
    model, prompt = installed(call), count_words(inputs(call))
    vector: object = EMBEDDING
    if call.fields.get("encoding_format") == "base64":
        packed = struct.pack(f"<{len(EMBEDDING)}f", *EMBEDDING)
        vector = base64.b64encode(packed).decode()
    data = [
        {"object": "embedding", "embedding": vector, "index": index}
        for index, _ in enumerate(inputs(call))
    ]
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    return v1_reply({"object": "list", "data": data, "model": model, "usage": usage})


def _entry(name: str) -> dict[str, Any]:
    facts = {"object": "model", "created": CREATED_UNIX, "owned_by": "library"}
    return {"id": name} | facts


def _models(_call: Call) -> Reply:
    return v1_reply({"object": "list", "data": list(map(_entry, MODELS))})


def _model(call: Call) -> Reply:
    return v1_reply(_entry(installed(call)))


OPENAI_ROUTES: Routes = {
    "/v1/chat/completions": (("POST",), _chat_completions),
    "/v1/completions": (("POST",), _completions),
    "/v1/embeddings": (("POST",), _embeddings),
    "/v1/models": (("GET",), _models),
    "/v1/models/:model": (("GET",), _model),
}
