"""The cases of the corpus, read from the data files beside this module.

A case knows its bytes and what is expected, and nothing of any gateway.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from authz.core.credential import mint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DIRECTORY = Path(__file__).parent
THEMES = tuple(sorted(path.stem for path in DIRECTORY.glob("*.yaml")))

_UNKNOWN = mint(b"never issued".ljust(32))
_PLACEHOLDER = re.compile(r"\{([A-Z_]+)\}|\{([^{}\"]+) x (\d+)\}")
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|[\\rnt0])")
_ESCAPED = {b"\\": b"\\", b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0"}


@dataclass(frozen=True, slots=True)
class Case:
    """One exchange on one connection.

    ``expect`` lists the answers in order (``200``, ``400 invalid_request``) and then
    ``open`` or ``closed``, the state of the connection after them, or ``silent``:
    the server waits for more. ``safe`` lists other outcomes that harm nobody.
    ``forwarded`` lists what the recorder has to get, as ``METHOD TARGET BODY``;
    ``headers`` are fields of each of these (None: not there). Texts hold
    placeholders.
    """

    name: str
    send: str
    expect: tuple[str, ...]
    safe: tuple[tuple[str, ...], ...]
    forwarded: tuple[str, ...]
    headers: Mapping[str, str | None]
    definitions: Mapping[str, str]

    @property
    def patience_s(self) -> float:
        """How long to wait for the end: not long where no answer is expected."""
        return 1 if self.expect == ("silent",) else 20

    def request(self, key: str) -> bytes:
        """Return the bytes to send, with ``key`` as the good key."""
        return _raw(_filled(self.send, self._values(key)))

    def authorised(self, key: str) -> list[bytes]:
        """Return what the recorder has to get, with ``key`` as the good key."""
        return [_raw(_filled(text, self._values(key))) for text in self.forwarded]

    def _values(self, key: str) -> dict[str, str]:
        return {**self.definitions, "KEY": key, "UNKNOWN": _UNKNOWN, "END": ""}


def load() -> list[Case]:
    """Read every case; raises for a file that is not of the form in README.md."""
    return [case for theme in THEMES for case in _read(theme)]


def _read(theme: str) -> Iterator[Case]:
    data = yaml.safe_load((DIRECTORY / f"{theme}.yaml").read_text(encoding="utf-8"))
    for entry in data["cases"]:
        yield _case(theme, data, dict(entry))


def _case(theme: str, data: Mapping[str, Any], entry: dict[str, Any]) -> Case:
    case = Case(
        name=f"{theme}: {entry.pop('name')}",
        send=entry.pop("send", data.get("send")),
        expect=_outcome(entry.pop("expect")),
        safe=tuple(map(_outcome, entry.pop("safe", []))),
        forwarded=tuple(entry.pop("forwarded", [])),
        headers=entry.pop("headers", {}),
        definitions={**data.get("define", {}), **entry.pop("fill", {})},
    )
    if entry:
        msg = f"{case.name}: unknown {', '.join(entry)}"
        raise ValueError(msg)
    return case


def _outcome(steps: list[object]) -> tuple[str, ...]:
    return tuple(map(str, steps))


def _filled(text: str, values: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        name, repeated, times = found.groups()
        return _filled(values[name], values) if name else repeated * int(times)

    return _PLACEHOLDER.sub(value, text)


def _raw(text: str) -> bytes:
    """Turn line ends into CRLF, join lines that end in a backslash, then unescape."""
    lines = text.replace("\\\n", "").replace("\n", "\r\n").encode()
    return _ESCAPE.sub(
        lambda found: _ESCAPED.get(found[1]) or bytes([int(found[1][1:], 16)]), lines
    )
