"""What Ollama answers, as values. Pure: the fields of a request in, a Reply out.

Shapes are those of Ollama 0.33; times and sizes are constants, and counts are
counts of words, so that a test can foretell every answer. The routes under
/v1 are in standin_v1.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from authz.core.names import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Handler = Callable[["Call"], "Reply"]
    Routes = Mapping[str, tuple[tuple[str, ...], Handler]]

WORDS = ("This", " is", " a", " stand-in", " for", " Ollama.")
EMBEDDING = (0.25, -0.5, 0.75)
CREATED = "2026-01-01T00:00:00Z"
CREATED_UNIX = 1767225600
MODELS = (
    "llama3.1:latest",
    "qwen3:8b",
    "nomic-embed-text:latest",
    "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
)

JSON_TYPE = "application/json; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"

_INSTALLED = {canonical(name): name for name in MODELS}
_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "8.0B",
    "quantization_level": "Q4_K_M",
}


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
    a native stream ends with if it is made to fail.
    """

    fields: dict[str, Any]
    pieces: tuple[str, ...]
    error_line: str

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
    content_type: str = JSON_TYPE
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    streamed: bool = False
    failure: bytes = b""


def json_reply(value: object, status: int = 200) -> Reply:
    """Build an answer of one JSON value."""
    return Reply((json.dumps(value).encode(),), status=status)


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
    return _generation(call, model, lambda text: {"response": text}, final)


def _chat(call: Call) -> Reply:
    model, messages = installed(call), call.fields.get("messages")
    if not messages:
        return _load(call, model, _message(""))
    final = _metrics(count_words(messages), len(call.pieces))
    return _generation(call, model, _message, final)


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _load(call: Call, model: str, empty: dict[str, Any]) -> Reply:
    """Answer a request without a prompt: it only loads or unloads the model."""
    reason = "unload" if call.fields.get("keep_alive") == 0 else "load"
    done = {"done": True, "done_reason": reason}
    return json_reply({"model": model, "created_at": CREATED} | empty | done)


def _generation(
    call: Call,
    model: str,
    wrap: Callable[[str], dict[str, Any]],
    final: dict[str, Any],
) -> Reply:
    head = {"model": model, "created_at": CREATED}
    done = {"done": True, "done_reason": "stop"} | final
    if call.fields.get("stream") is False:
        return json_reply(head | wrap(call.text) | done)
    chunks = [head | wrap(piece) | {"done": False} for piece in call.pieces]
    return Reply(
        tuple(_line(json.dumps(chunk)) for chunk in [*chunks, head | wrap("") | done]),
        NDJSON_TYPE,
        streamed=True,
        failure=_line(call.error_line),
    )


def _line(text: str) -> bytes:
    return f"{text}\n".encode()


def inputs(call: Call) -> list[Any]:
    """Return what is to be embedded, as a list."""
    value = call.fields.get("input", [])
    return value if isinstance(value, list) else [value]


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
            "model_info": {"general.architecture": "llama"},
            "capabilities": ["completion"],
            "modified_at": CREATED,
        }
    )


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
    "/api/generate": (("POST",), _generate),
    "/api/chat": (("POST",), _chat),
    "/api/embed": (("POST",), _embed),
    "/api/embeddings": (("POST",), _embeddings),
}
