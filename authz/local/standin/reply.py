"""What the routes share: a request's fields, a Reply, the installed models.

Pure. Times are constants and counts are counts of words, so that a test can
foretell every answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from authz.core.names import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Handler = Callable[["Call"], "Reply"]
    Routes = Mapping[str, tuple[tuple[str, ...], Handler]]

WORDS = ("This", " is", " a", " stand-in", " for", " Ollama.")
EMBEDDING = (0.25, -0.5, 0.75)
TOOL_ID = "call_standin"
TOOL_ARGUMENTS = {"city": "Paris"}
CREATED = "2026-01-01T00:00:00Z"
CREATED_UNIX = 1767225600
MODELS = (
    "llama3.1:latest",
    "qwen3:8b",
    "nomic-embed-text:latest",
    "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
)

_JSON_TYPE = "application/json; charset=utf-8"

_INSTALLED = frozenset(map(canonical, MODELS))


class Unanswerable(Exception):
    """A request that Ollama answers with this status and error message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Call:
    """A request: its decoded fields and what the stand-in has to say to it.

    ``pieces`` are the chunks of the answer; ``error_line`` is the JSON text that
    a native stream ends with if it is made to fail. If ``tool`` is set, the answer is
    a call of that tool and its one piece is empty.
    """

    fields: dict[str, Any]
    pieces: tuple[str, ...]
    error_line: str
    tool: str = ""

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. A stream's frames are sent one by one, without a length.

    ``failure`` is how such a stream ends when the model fails in its middle.
    """

    frames: tuple[bytes, ...]
    content_type: str = _JSON_TYPE
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    streamed: bool = False
    failure: bytes = b""


def dump(value: object, *, sort: bool = False) -> str:
    """Write JSON as Go does: no spaces, for there are readers that rely on it.

    Go sorts the keys of a map, but not the fields of a struct.
    """
    return json.dumps(value, separators=(",", ":"), sort_keys=sort)


def json_reply(value: object, status: int = 200) -> Reply:
    """Build an answer of one JSON value."""
    return Reply((dump(value).encode(),), status=status)


def v1_reply(value: object, status: int = 200) -> Reply:
    """Build an answer of one JSON value under /v1, where it ends with its line."""
    return Reply((f"{dump(value)}\n".encode(),), "application/json", status)


def v1_stream(frames: Iterable[bytes], failure: bytes) -> Reply:
    """Build a stream of server-sent events."""
    return Reply(tuple(frames), "text/event-stream", streamed=True, failure=failure)


def event_data(value: object, *, sort: bool = False) -> bytes:
    """Write the data line of a server-sent event, and the event's end."""
    return f"data: {dump(value, sort=sort)}\n\n".encode()


def read_fields(body: bytes) -> dict[str, Any]:
    """Decode a body as Go does: keys in any case, the last wins, the rest is ignored.

    Raises Unanswerable where Ollama answers 400.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_fold_keys)
    try:
        value, _ = decoder.raw_decode(body.decode(errors="replace").lstrip())
    except (ValueError, RecursionError):
        message = "invalid JSON" if body.strip() else "missing request body"
        raise Unanswerable(400, message) from None
    if not isinstance(value, dict):
        raise Unanswerable(400, "json: cannot unmarshal value into an object")
    return value


def _fold_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key.lower(): value for key, value in pairs if value is not None}


def installed(call: Call, *fields: str) -> str:
    """Return the model's name as the request spells it (the first non-empty field).

    Raises Unanswerable if there is none or it is not installed.
    """
    name = next(filter(None, map(call.fields.get, fields or ("model",))), "")
    if not isinstance(name, str):
        raise Unanswerable(400, "json: cannot unmarshal value into a string")
    if not name:
        raise Unanswerable(400, "model is required")
    if canonical(name) not in _INSTALLED:
        raise Unanswerable(404, f"model '{name}' not found")
    return name


def first_tool(fields: dict[str, Any]) -> str:
    """Return the name of the first function that a request declares, or nothing."""
    for tool in fields.get("tools") or ():
        function = tool.get("function", tool)
        if function.get("name") and tool.get("type", "function") == "function":
            return str(function["name"])
    return ""


def count_words(prompt: object) -> int:
    """Count the words of a text, of messages, or of parts of messages."""
    match prompt:
        case str():
            return len(prompt.split())
        case list():
            return sum(map(count_words, prompt))
        case dict():
            return count_words(prompt.get("content", prompt.get("text")))
    return 0


def inputs(call: Call) -> list[Any]:
    """Return what is to be embedded, as a list."""
    value = call.fields.get("input", [])
    return value if isinstance(value, list) else [value]
