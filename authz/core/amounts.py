"""How much a body asks of the machine, by the names of parameters.py.

Values are read as Go would read them (Ollama 0.33); what it would refuse, or could
read in a second way, is refused here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from authz.core.body import Json
from authz.core.images import Picture, count_sounds, most_pixels

if TYPE_CHECKING:
    from collections.abc import Iterator

Amounts = dict[str, float]

# Fields inside of which we look. Go takes their names in any case, and two letters
# beyond ASCII for their fellows (here also as the bytes of their UTF-8).
_INNER = frozenset(
    [
        *("content", "data", "format", "image_url", "images", "input_audio"),
        *("json_schema", "output", "schema", "source", "tools", "type", "url"),
    ]
)
_S_OR_K = re.compile("(\u017f|\xc5\xbf)|\u212a|\xe2\x84\xaa")

# Integers beyond are not exact in Go's float64.
_LARGEST = 2**53

_NS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_SECOND = _NS["s"]
_LONGEST_NS = 2**63 - 1
_DURATION = re.compile(
    r"[+-]?(?:0|(?:(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:ns|us|ms|s|m|h)){1,20})"
)
_DURATION_PART = re.compile(r"([0-9]*)\.?([0-9]*)([a-z]+)")


class OddValueError(ValueError):
    """A value is not of the type that Ollama reads."""


def read_amounts(path: str, body: Json, size: int) -> Amounts:
    """Return what a request to an endpoint asks for with a body of ``size`` bytes.

    Raises OddValueError naming the kind of parameter.
    """
    readers = _READERS.get(path)
    if readers is None:
        return {}
    amounts: Amounts = {"text_bytes": size}
    for read, field in readers:
        if field is not None and field not in body:
            continue
        try:
            read(body, amounts)
        except OddValueError:
            raise OddValueError(read.__name__.strip("_")) from None
    return amounts


def _generation(body: Json, amounts: Amounts) -> None:
    idle = not _text(body.get("prompt"))
    _keep_alive(body, amounts, idle=idle)
    if not idle:
        _num_predict(_object(body.get("options")).get("num_predict"), amounts)
    for name in ("template", "system"):
        if _text(body.get(name)):
            amounts[name] = 1
    if _flag(body.get("raw")):
        amounts["raw"] = 1
    context = _list(body.get("context"))
    if context:
        amounts["context_tokens"] = len(context)


def _chat(body: Json, amounts: Amounts) -> None:
    idle = not _list(body.get("messages"))
    _keep_alive(body, amounts, idle=idle)
    if not idle:
        _num_predict(_object(body.get("options")).get("num_predict"), amounts)


def _embed(body: Json, amounts: Amounts) -> None:
    _keep_alive(body, amounts, idle=not body.get("input"))


def _embeddings(body: Json, amounts: Amounts) -> None:
    prompt = _text(body.get("prompt"))
    _keep_alive(body, amounts, idle=not prompt)
    amounts["input_bytes"] = _size(prompt)


def _completion(body: Json, amounts: Amounts) -> None:
    if not _text(body.get("prompt")):
        amounts["load"] = 1


def _max_tokens(body: Json, amounts: Amounts) -> None:
    _num_predict(body.get("max_tokens"), amounts)


def _max_output_tokens(body: Json, amounts: Amounts) -> None:
    _num_predict(body.get("max_output_tokens"), amounts)


def _num_predict(value: object, amounts: Amounts) -> None:
    amounts["num_predict"] = -1 if value is None else _whole(value)


def _options(body: Json, amounts: Amounts) -> None:
    options = _object(body.get("options"))
    for name in _WHOLE & options.keys():
        value = options[name]
        if value is None:
            value = _OF_NULL.get(name)
        if value is not None:
            amounts[name] = _whole(value)
    if options.get("use_mmap") is not None:
        amounts["use_mmap"] = _flag(options["use_mmap"])
    _stops(options.get("stop"), amounts)


def _shift(body: Json, amounts: Amounts) -> None:
    if body.get("shift") is not None:
        amounts["shift"] = _flag(body["shift"])


def _keep_alive(body: Json, amounts: Amounts, *, idle: bool) -> None:
    """Read how long the model is to stay; idle is a request without a prompt."""
    value = body.get("keep_alive")
    seconds = None if value is None else _seconds(value)
    if idle and seconds == 0:
        amounts["unload"] = 1
        return
    if idle:
        amounts["load"] = 1
    if seconds is not None:
        amounts["keep_alive"] = seconds


def _seconds(value: object) -> float:
    """Read a duration of Go: negative ones are for ever, parts of 1 ns are none."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        ns = sum(_part_ns(*part) for part in _DURATION_PART.findall(value))
        ns = -ns if value.startswith("-") else ns
    else:
        ns = int(_number(value) * _SECOND)
    if ns > _LONGEST_NS:
        raise OddValueError
    return inf if _is_negative(value, ns) else ns / _SECOND


def _part_ns(whole: str, fraction: str, unit: str) -> int:
    ns: int = int(whole + fraction) * _NS[unit] // 10 ** len(fraction)
    return ns


def _is_negative(value: object, ns: int) -> bool:
    # A number is compared before it is cut to nanoseconds, a text after.
    return ns < 0 or (isinstance(value, float) and value < 0)


def _stop(body: Json, amounts: Amounts) -> None:
    stop = body.get("stop")
    _stops([stop] if isinstance(stop, str) else stop, amounts)


def _stop_sequences(body: Json, amounts: Amounts) -> None:
    _stops(body.get("stop_sequences"), amounts)


def _stops(value: object, amounts: Amounts) -> None:
    stops = [_text(stop) for stop in _list(value)]
    if stops:
        amounts["stops"] = len(stops)
        amounts["stop_bytes"] = max(map(_size, stops))


def _inputs(body: Json, amounts: Amounts) -> None:
    value = body.get("input")
    inputs = value if isinstance(value, list) else [value]
    amounts["inputs"] = len(inputs)
    sizes = (_size(text) for text in inputs if isinstance(text, (str, list)))
    amounts["input_bytes"] = max(sizes, default=0)


def _format(body: Json, amounts: Amounts) -> None:
    _schema(body.get("format"), amounts)


def _response_format(body: Json, amounts: Amounts) -> None:
    _schema(_read(body.get("response_format"), "json_schema", "schema"), amounts)


def _text_format(body: Json, amounts: Amounts) -> None:
    _schema(_read(body.get("text"), "format", "schema"), amounts)


def _schema(value: object, amounts: Amounts) -> None:
    if isinstance(value, (dict, list)):
        amounts["format_bytes"] = len(json.dumps(value))


def _messages(body: Json, amounts: Amounts) -> None:
    _count("messages", body.get("messages"), amounts)


def _items(body: Json, amounts: Amounts) -> None:
    _count("messages", body.get("input"), amounts)


def _tools(body: Json, amounts: Amounts) -> None:
    _count("tools", body.get("tools"), amounts)


def _count(name: str, value: object, amounts: Amounts) -> None:
    if isinstance(value, list) and value:
        amounts[name] = len(value)


def _web_search(body: Json, amounts: Amounts) -> None:
    """Look for the tool that the model server itself runs, in groups of tools too."""
    left = [body.get("tools")]
    while left:
        for tool in _list(left.pop()):
            fields = _fields(tool)
            if str(fields.get("type", "")).lower().startswith("web_search"):
                amounts["web_search"] = 1
            if "tools" in fields:
                left.append(fields["tools"])


def _images(body: Json, amounts: Amounts) -> None:
    images = _pictures(body)
    if images:
        amounts["images"] = len(images)
        amounts["image_bytes"] = max(image.size for image in images)
        amounts["image_pixels"] = most_pixels(images)
        amounts["text_bytes"] -= sum(image.length for image in images)
        sounds = count_sounds(images)
        if sounds:
            amounts["sounds"] = sounds


def _pictures(body: Json) -> list[Picture]:
    """Return what any of the protocols takes for a picture, wherever it takes one."""
    pictures = _given(body)
    left = [body.get("messages"), body.get("input")]
    while left:
        parts = left.pop()
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, dict) or _is_plain(part):
                continue
            fields = _fields(part)
            pictures += _given(fields)
            pictures += _held(fields)
            left += fields.get("content"), fields.get("output")
    return pictures


def _given(fields: Json) -> list[Picture]:
    images = _list(fields.get("images"))
    if not images:
        return []
    return [Picture(text) for text in map(_text, images) if text]


def _is_plain(message: Json) -> bool:
    """Tell most messages, which are a text, from those that may hold more."""
    return _OF_A_PLAIN_MESSAGE.issuperset(message) and isinstance(
        message.get("content"), str
    )


def _held(part: Json) -> Iterator[Picture]:
    for holder, inner in _HOLDERS:
        if holder in part:
            value = part[holder]
            text = _fields(value).get(inner) if isinstance(value, dict) else value
            # Ollama fetches nothing: it answers an address with an error.
            if isinstance(text, str) and not text.startswith(("http://", "https://")):
                yield Picture(text)
    if part.get("type") == "image":  # of a document nothing is read
        data = _fields(part.get("source")).get("data")
        if isinstance(data, str):
            yield Picture(data)


def _read(value: object, *path: str) -> object:
    for name in path:
        value = _fields(value).get(name)
    return value


def _fields(value: object) -> Json:
    """Return an object in which no field can pass for another one."""
    fields = _object(value)
    for key in fields:
        if not (key.isascii() and key.islower()) and key not in _INNER:
            folded = _S_OR_K.sub(lambda found: "s" if found[1] else "k", key)
            if folded.lower() in _INNER:
                raise OddValueError
    return fields


def _object(value: object) -> Json:
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    raise OddValueError


def _list(value: object) -> list[object]:
    if value is None:
        return []
    if isinstance(value, list):
        return value
    raise OddValueError


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise OddValueError


def _flag(value: object) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise OddValueError


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise OddValueError
    if not -_LARGEST < value < _LARGEST:
        raise OddValueError
    return value


def _size(text: str | list[object]) -> int:
    """Return the bytes of a text, the length of anything else.

    Beyond U+00FF are only texts that were read in full; in others a sign is a byte.
    """
    if isinstance(text, str) and text and max(text) > "\xff":
        return len(text.encode("utf-8", "surrogatepass"))
    return len(text)


def _whole(value: object) -> int:
    """Cut a number to an integer, as Go does."""
    return int(_number(value))


_WHOLE = frozenset(
    [
        *("num_ctx", "num_gpu", "num_thread", "num_batch", "main_gpu"),
        *("draft_num_predict", "repeat_last_n"),
    ]
)
# Where these are null, Ollama puts its own fixed value in place of an automatic one.
_OF_NULL = {"num_batch": 512, "draft_num_predict": 4}
_OF_A_PLAIN_MESSAGE = frozenset({"role", "content", "type", "text", "name"})
_HOLDERS = (("image_url", "url"), ("input_audio", "data"))

_Reader = Callable[[Json, Amounts], None]
# Those that find nothing where one field is not given, and that field.
_ONE_FIELD: dict[_Reader, str] = {
    _options: "options",
    _shift: "shift",
    _stop: "stop",
    _stop_sequences: "stop_sequences",
    _format: "format",
    _response_format: "response_format",
    _text_format: "text",
    _messages: "messages",
    _items: "input",
    _tools: "tools",
    _web_search: "tools",
}
_READERS_OF: dict[str, tuple[_Reader, ...]] = {
    "/api/generate": (_generation, _options, _shift, _format, _images),
    "/api/chat": (_chat, _messages, _tools, _options, _shift, _format, _images),
    "/api/embed": (_embed, _options, _inputs),
    "/api/embeddings": (_embeddings, _options),
    "/v1/chat/completions": (
        *(_max_tokens, _messages, _tools, _stop, _response_format, _images),
    ),
    "/v1/completions": (_completion, _max_tokens, _stop),
    "/v1/embeddings": (_inputs,),
    "/v1/messages": (
        *(_max_tokens, _messages, _tools, _stop_sequences, _web_search, _images),
    ),
    "/v1/responses": (
        *(_max_output_tokens, _items, _tools, _text_format, _web_search, _images),
    ),
}
_READERS = {
    path: tuple((read, _ONE_FIELD.get(read)) for read in readers)
    for path, readers in _READERS_OF.items()
}
