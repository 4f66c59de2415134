"""Patterns over canonical model names.

A pattern is a name in which ``*`` stands for any run of characters within one
part; what it leaves out gets Ollama's defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from authz.core.names import (
    DEFAULT_HOST,
    DEFAULT_NAMESPACE,
    DEFAULT_TAG,
    names_a_source,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVERYTHING = "*"

# Of each part of a pattern, what stands between its stars.
_Pieces = tuple[tuple[str, ...], ...]
# Patterns by their end, and these by its length.
_Ends = dict[int, dict[str, list[_Pieces]]]

# A key asks for few models, and keys are many.
_REMEMBERED = 16

_PATTERN = re.compile(
    r"(?:(?:(?P<host>[\w*][\w.:*-]{0,349})/)?(?P<namespace>[\w*][\w*-]{0,79})/)?"
    r"(?P<model>[\w*][\w.*-]{0,79})(?::(?P<tag>[\w*][\w.*-]{0,79}))?",
    re.ASCII,
)


def canonical_pattern(text: str) -> str | None:
    """Return the pattern with its defaults, in lower case; None if it is none."""
    if text == EVERYTHING:
        return EVERYTHING
    parts = _PATTERN.fullmatch(text)
    if parts is None or names_a_source(parts["tag"] or DEFAULT_TAG):
        return None
    return (
        f"{parts['host'] or DEFAULT_HOST}/{parts['namespace'] or DEFAULT_NAMESPACE}"
        f"/{parts['model']}:{parts['tag'] or DEFAULT_TAG}"
    ).lower()


@dataclass(frozen=True)
class Allowlist:
    """The models of a key, compiled from canonical patterns."""

    patterns: tuple[str, ...]

    @cached_property
    def everything(self) -> bool:
        """Whether every model is allowed."""
        return EVERYTHING in self.patterns

    def allows(self, name: str) -> bool:
        """Tell whether a canonical name is allowed."""
        return self.everything or name in self._exact or self._finds(name)

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(p for p in self.patterns if "*" not in p)

    @cached_property
    def _finds(self) -> Callable[[str], bool]:
        return lru_cache(_REMEMBERED)(self._find)

    def _find(self, name: str) -> bool:
        parts = _split(name)
        return any(_matches(pattern, parts) for pattern in self._candidates(name))

    def _candidates(self, name: str) -> Iterator[_Pieces]:
        """Take time with how many lengths starts and ends have, not patterns."""
        for start, starts in self._wild.items():
            for end, ends in starts.get(name[:start], {}).items():
                yield from ends.get(name[len(name) - end :], ())

    @cached_property
    def _wild(self) -> dict[int, dict[str, _Ends]]:
        """By what stands before the first star, then by what follows the last."""
        wild: dict[int, dict[str, _Ends]] = {}
        for pattern in self.patterns:
            if "*" in pattern and pattern != EVERYTHING:
                start, *_, end = pattern.split("*")
                starts = wild.setdefault(len(start), {})
                ends = starts.setdefault(start, {}).setdefault(len(end), {})
                ends.setdefault(end, []).append(_pieces(pattern))
        return wild


@lru_cache(maxsize=4096)
def compiled(patterns: tuple[str, ...]) -> Allowlist:
    """Return one Allowlist for the same patterns: to index a thousand takes 5 ms."""
    return Allowlist(patterns)


def _pieces(pattern: str) -> _Pieces:
    return tuple(tuple(part.split("*")) for part in _split(pattern))


def _split(name: str) -> tuple[str, ...]:
    host, namespace, model_and_tag = name.split("/")
    model, _, tag = model_and_tag.partition(":")
    return host, namespace, model, tag


def _matches(pattern: _Pieces, parts: tuple[str, ...]) -> bool:
    return all(map(_matches_part, pattern, parts))


def _matches_part(pieces: tuple[str, ...], text: str) -> bool:
    """Match one part: what stands between the stars, each at its first place."""
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return first == text
    if len(text) < len(first) + len(last):
        return False
    if not (text.startswith(first) and text.endswith(last)):
        return False
    position, end = len(first), len(text) - len(last)
    for piece in pieces[1:-1]:
        found = text.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True
