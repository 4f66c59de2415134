"""OpenAI's Responses route, in the shapes of Ollama 0.33. Pure.

There is no error frame: a stream that fails just ends early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from authz.local.standin.reply import (
    CREATED_UNIX,
    TOOL_ARGUMENTS,
    TOOL_ID,
    Call,
    Reply,
    count_words,
    dump,
    event_data,
    installed,
    v1_reply,
    v1_stream,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authz.local.standin.reply import Routes

    Event = tuple[str, dict[str, Any]]

_MESSAGE_ID = "msg_standin"
_FUNCTION_ID = "fc_standin"


def _responses(call: Call) -> Reply:
    installed(call)
    item = _function_call(call.tool) if call.tool else _message(call.text)
    done = _response(call, [item], _usage(call)) | {"completed_at": CREATED_UNIX}
    if not call.fields.get("stream"):
        return v1_reply(done)
    begun = {"response": _response(call, [], None) | {"status": "in_progress"}}
    events = [
        ("response.created", begun),
        ("response.in_progress", begun),
        *(_tool_events(item) if call.tool else _text_events(call, item)),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": done}),
    ]
    return v1_stream(map(_frame, range(len(events)), events), failure=b"")


def _frame(number: int, event: Event) -> bytes:
    kind, values = event
    data = {"type": kind, "sequence_number": number} | values
    return f"event: {kind}\n".encode() + event_data(data, sort=True)


def _text_events(call: Call, item: dict[str, Any]) -> Iterator[Event]:
    begun = item | {"status": "in_progress", "content": []}
    place = {"item_id": _MESSAGE_ID, "output_index": 0, "content_index": 0}
    part = "response.content_part"
    text = "response.output_text"
    yield "response.output_item.added", {"output_index": 0, "item": begun}
    yield f"{part}.added", place | {"part": _part("")}
    for piece in call.pieces:
        yield f"{text}.delta", place | {"delta": piece, "logprobs": []}
    yield f"{text}.done", place | {"text": call.text, "logprobs": []}
    yield f"{part}.done", place | {"part": _part(call.text)}


def _tool_events(item: dict[str, Any]) -> Iterator[Event]:
    begun = item | {"status": "in_progress", "arguments": ""}
    place = {"item_id": _FUNCTION_ID, "output_index": 0}
    name = "response.function_call_arguments"
    yield "response.output_item.added", {"output_index": 0, "item": begun}
    yield f"{name}.delta", place | {"delta": item["arguments"]}
    yield f"{name}.done", place | {"arguments": item["arguments"]}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(text: str) -> dict[str, Any]:
    head = {"id": _MESSAGE_ID, "type": "message", "status": "completed"}
    return head | {"role": "assistant", "content": [_part(text)]}


def _function_call(tool: str) -> dict[str, Any]:
    head = {"id": _FUNCTION_ID, "type": "function_call", "status": "completed"}
    called = {"call_id": TOOL_ID, "name": tool, "arguments": dump(TOOL_ARGUMENTS)}
    return head | called


def _usage(call: Call) -> dict[str, Any]:
    prompt, answer = count_words(call.fields.get("input")), len(call.pieces)
    return {
        "input_tokens": prompt,
        "output_tokens": answer,
        "total_tokens": prompt + answer,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _response(
    call: Call, output: list[dict[str, Any]], usage: dict[str, Any] | None
) -> dict[str, Any]:
    """Build the response, in the order of Ollama's fields; it repeats the request."""
    return {
        "id": "resp_standin",
        "object": "response",
        "created_at": CREATED_UNIX,
        "completed_at": None,
        "status": "completed",
        "incomplete_details": None,
        "model": call.fields["model"],
        "previous_response_id": None,
        "instructions": call.fields.get("instructions"),
        "output": output,
        "error": None,
        "tools": call.fields.get("tools") or [],
        "tool_choice": "auto",
        "truncation": "disabled",
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}},
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_logprobs": 0,
        "temperature": 1,
        "reasoning": None,
        "usage": usage,
        "max_output_tokens": call.fields.get("max_output_tokens"),
        "max_tool_calls": None,
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


RESPONSES_ROUTES: Routes = {"/v1/responses": (("POST",), _responses)}
