"""JSON as Go's scanner takes it: a parser over bytes that keeps every member.

It shares no code with the gateway or with Python's json, so that they can be
compared with it; Go 1.26, encoding/json. Linear, and no deeper than its list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEEPEST = 10_000

_TOKEN = re.compile(
    rb"[ \t\r\n]*+(?:(?P<mark>[\[\]{},:])"
    rb'|"(?P<text>[^"\\\x00-\x1f]*+'
    rb'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+)"'
    rb"|(?P<number>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+)"
    rb"|(?P<word>true|false|null))"
)
_BLANK = re.compile(rb"[ \t\r\n]*+")
_WORDS = {b"true": True, b"false": False, b"null": None}

_ESCAPE = re.compile(
    r"\\u(d[89ab]..)\\u(d[c-f]..)|\\u(....)|\\(.)", re.IGNORECASE | re.DOTALL
)
_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_NO_BYTE_OF_UTF8 = re.compile("[\udc80-\udcff]")


class GoError(Exception):
    """Go refuses the body: Ollama answers 400."""


@dataclass
class Members:
    """An object: its members in document order, duplicates included."""

    pairs: list[tuple[str, Json]] = field(default_factory=list)


Json = str | float | bool | Members | list["Json"] | None


# What may come next, as kinds of tokens: marks, " for a text, 0 for the rest.
_VALUE = '{["0'
_KEY = '"'
_KEY_OR_END = '"}'
_OPENED = {"{": _KEY_OR_END, "[": _VALUE + "]"}


@dataclass
class _Container:
    """An object or array whose end has not come; ``key`` waits for its value."""

    content: Members | list[Json]
    key: str = ""

    def after(self, mark: str) -> str:
        """Return what follows a comma or colon."""
        in_object = isinstance(self.content, Members)
        return _KEY if in_object and mark == "," else _VALUE

    def put(self, value: Json) -> str:
        """Add a value; return what follows it."""
        if isinstance(self.content, Members):
            self.content.pairs.append((self.key, value))
            return ",}"
        self.content.append(value)
        return ",]"


def parse(body: bytes) -> tuple[Json, int]:
    """Read the first value; return it and the offset of what follows it."""
    containers: list[_Container] = []
    expected = _VALUE
    for kind, token, end in _tokens(body):
        if kind not in expected or len(containers) > _DEEPEST:
            raise GoError
        if kind in _OPENED:
            containers.append(_Container(Members() if kind == "{" else []))
            expected = _OPENED[kind]
        elif kind in ",:":
            expected = containers[-1].after(kind)
        elif expected in (_KEY, _KEY_OR_END) and kind != "}":
            containers[-1].key = str(token)
            expected = ":"
        else:
            value = containers.pop().content if kind in "]}" else token
            if not containers:
                return value, end
            expected = containers[-1].put(value)
    raise GoError


def _tokens(body: bytes) -> Iterator[tuple[str, Json, int]]:
    """Yield kind, value and end of each token until one is malformed."""
    end = 0
    while found := _TOKEN.match(body, end):
        end = found.end()
        source = found[found.lastgroup or 0]
        match found.lastgroup:
            case "mark":
                yield source.decode(), None, end
            case "text":
                yield '"', _text(source), end
            case "number":
                yield "0", float(source), end
            case _:
                yield "0", _WORDS[source], end


def _text(source: bytes) -> str:
    # One replacement for each wrong byte; Python's own would join some.
    text = _NO_BYTE_OF_UTF8.sub("\ufffd", source.decode("utf-8", "surrogateescape"))
    return _ESCAPE.sub(_unescaped, text)


def _unescaped(escape: re.Match[str]) -> str:
    high, low, unit, letter = escape.groups()
    if high:
        return chr(0x10000 + (int(high, 16) % 0x400 << 10) + int(low, 16) % 0x400)
    if unit:
        rune = int(unit, 16)
        return "\ufffd" if 0xD800 <= rune <= 0xDFFF else chr(rune)
    return _CONTROLS.get(letter, str(letter))


def rest_is_blank(body: bytes, end: int) -> bool:
    """Tell whether nothing but white space follows a value."""
    return _BLANK.fullmatch(body, end) is not None
