"""Anthropic's route, in the shapes of Ollama 0.33. Pure.

There is no error frame: a stream that fails just ends early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from authz.local.standin.reply import (
    TOOL_ARGUMENTS,
    TOOL_ID,
    Call,
    Reply,
    Unanswerable,
    count_words,
    dump,
    event_data,
    installed,
    v1_reply,
    v1_stream,
)

if TYPE_CHECKING:
    from authz.local.standin.reply import Routes

_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


def anthropic_error(error: Unanswerable) -> Reply:
    """Build the error body that Anthropic's clients read."""
    kind = _ERROR_TYPES.get(error.status, "api_error")
    body = {"type": kind, "message": error.message}
    whole = {"type": "error", "error": body, "request_id": "req_standin"}
    return v1_reply(whole, error.status)


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
    block = _tool_use(call, TOOL_ARGUMENTS) if call.tool else _text(call.text)
    return v1_reply(message | {"content": [block]} | _end(call) | {"usage": usage})


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool_use(call: Call, arguments: dict[str, str]) -> dict[str, Any]:
    return {"type": "tool_use", "id": TOOL_ID, "name": call.tool, "input": arguments}


def _end(call: Call) -> dict[str, str]:
    return {"stop_reason": "tool_use" if call.tool else "end_turn"}


def _message_stream(
    call: Call, message: dict[str, Any], usage: dict[str, int]
) -> Reply:
    # Ollama begins with an estimate: only the last counts are to be relied on.
    estimate = {"input_tokens": usage["input_tokens"] + 1, "output_tokens": 0}
    started = message | {"content": []} | {"usage": estimate}
    if call.tool:
        block = _tool_use(call, {})
        partial = dump(TOOL_ARGUMENTS)
        deltas = [{"type": "input_json_delta", "partial_json": partial}]
    else:
        block = _text("")
        deltas = [{"type": "text_delta", "text": piece} for piece in call.pieces]
    frames = [
        _event("message_start", message=started),
        _event("content_block_start", index=0, content_block=block),
        *(_event("content_block_delta", index=0, delta=delta) for delta in deltas),
        _event("content_block_stop", index=0),
        _event("message_delta", delta=_end(call), usage=usage),
        _event("message_stop"),
    ]
    return v1_stream(frames, failure=b"")


def _event(kind: str, **values: object) -> bytes:
    return f"event: {kind}\n".encode() + event_data({"type": kind} | values)


ANTHROPIC_ROUTES: Routes = {"/v1/messages": (("POST",), _messages)}
