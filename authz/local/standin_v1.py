"""What Ollama answers under /v1, in the shapes of OpenAI and of Anthropic.

Pure, like standin_replies.py. The /v1 layer of Ollama has no error frame: a
stream that fails ends early, in OpenAI's shape after one empty chunk.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any

from authz.local.standin_replies import (
    CREATED_UNIX,
    EMBEDDING,
    MODELS,
    Call,
    Reply,
    Unanswerable,
    count_words,
    inputs,
    installed,
    json_reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from authz.local.standin_replies import Routes

_SSE_TYPE = "text/event-stream"
_DONE = b"data: [DONE]\n\n"
_OPENAI_ERRORS = {400: "invalid_request_error", 404: "not_found_error"}


def v1_error(path: str, error: Unanswerable) -> Reply:
    """Build the error body of the family that the path belongs to."""
    kind = _OPENAI_ERRORS.get(error.status, "api_error")
    body: dict[str, Any] = {"type": kind, "message": error.message}
    if path == "/v1/messages":
        request_id = {"request_id": "req_standin"}
        return json_reply({"type": "error", "error": body} | request_id, error.status)
    return json_reply({"error": body | {"param": None, "code": None}}, error.status)


def _data(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _usage(prompt: int, answer: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def _head(identity: str, kind: str, model: str) -> dict[str, Any]:
    return {
        "id": identity,
        "object": kind,
        "created": CREATED_UNIX,
        "model": model,
        "system_fingerprint": "fp_ollama",
    }


def _chat_completions(call: Call) -> Reply:
    model, messages = installed(call), call.fields.get("messages")
    if not messages:
        raise Unanswerable(400, "[] is too short - 'messages'")
    usage = _usage(count_words(messages), len(call.pieces))
    if not call.fields.get("stream"):
        choice = _choice({"message": _said(call.text)}, "stop")
        head = _head("chatcmpl-1", "chat.completion", model)
        return json_reply(head | {"choices": [choice], "usage": usage})
    head = _head("chatcmpl-1", "chat.completion.chunk", model)
    return _openai_stream(call, head, lambda text: {"delta": _said(text)}, usage)


def _completions(call: Call) -> Reply:
    model, prompt = installed(call), call.fields.get("prompt")
    usage = _usage(count_words(prompt), len(call.pieces))
    head = _head("cmpl-1", "text_completion", model)
    if not call.fields.get("stream"):
        choice = _choice({"text": call.text}, "stop")
        return json_reply(head | {"choices": [choice], "usage": usage})
    if _wants_usage(call):
        head |= {"usage": _usage(0, 0)}
    return _openai_stream(call, head, lambda text: {"text": text}, usage)


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _choice(content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0} | content | {"finish_reason": finish_reason}


def _wants_usage(call: Call) -> bool:
    options = call.fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _openai_stream(
    call: Call,
    head: dict[str, Any],
    wrap: Callable[[str], dict[str, Any]],
    usage: dict[str, int],
) -> Reply:
    def chunk(text: str, finish_reason: str | None = None) -> bytes:
        return _data(head | {"choices": [_choice(wrap(text), finish_reason)]})

    frames = [*map(chunk, call.pieces), chunk("", "stop")]
    if _wants_usage(call):
        frames.append(_data(head | {"choices": [], "usage": usage}))
    return _stream([*frames, _DONE], failure=chunk(""))


def _stream(frames: Iterable[bytes], failure: bytes) -> Reply:
    return Reply(tuple(frames), _SSE_TYPE, streamed=True, failure=failure)


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
    return json_reply(
        {"object": "list", "data": data, "model": model, "usage": usage}
    )


def _entry(name: str) -> dict[str, Any]:
    facts = {"object": "model", "created": CREATED_UNIX, "owned_by": "library"}
    return {"id": name} | facts


def _models(_call: Call) -> Reply:
    return json_reply({"object": "list", "data": list(map(_entry, MODELS))})


def _model(call: Call) -> Reply:
    return json_reply(_entry(installed(call)))


def _messages(call: Call) -> Reply:
    limit, messages = call.fields.get("max_tokens"), call.fields.get("messages")
    if not isinstance(limit, int) or limit <= 0:
        raise Unanswerable(400, "max_tokens is required and must be positive")
    if not messages:
        raise Unanswerable(400, "messages is required")
    usage = {"input_tokens": count_words(messages), "output_tokens": len(call.pieces)}
    message: dict[str, Any] = {
        "id": "msg_standin",
        "type": "message",
        "role": "assistant",
        "model": installed(call),
    }
    if call.fields.get("stream"):
        return _message_stream(call, message, usage)
    content = [{"type": "text", "text": call.text}]
    return json_reply(message | {"content": content} | _ENDED | {"usage": usage})


_ENDED = {"stop_reason": "end_turn", "stop_sequence": None}


def _message_stream(
    call: Call, message: dict[str, Any], usage: dict[str, int]
) -> Reply:
    open_ended = {"content": [], "stop_reason": None, "stop_sequence": None}
    started = message | open_ended | {"usage": usage | {"output_tokens": 0}}
    block = {"type": "text", "text": ""}
    deltas = [{"type": "text_delta", "text": piece} for piece in call.pieces]
    frames = [
        _event("message_start", message=started),
        _event("content_block_start", index=0, content_block=block),
        *(_event("content_block_delta", index=0, delta=delta) for delta in deltas),
        _event("content_block_stop", index=0),
        _event("message_delta", delta=_ENDED, usage=usage),
        _event("message_stop"),
    ]
    return _stream(frames, failure=b"")


def _event(kind: str, **values: object) -> bytes:
    return f"event: {kind}\n".encode() + _data({"type": kind} | values)


V1_ROUTES: Routes = {
    "/v1/chat/completions": (("POST",), _chat_completions),
    "/v1/completions": (("POST",), _completions),
    "/v1/embeddings": (("POST",), _embeddings),
    "/v1/messages": (("POST",), _messages),
    "/v1/models": (("GET",), _models),
    "/v1/models/:model": (("GET",), _model),
}
