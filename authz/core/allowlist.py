"""Patterns over canonical model names.

A pattern is a name in which ``*`` stands for any run of characters within one
part; what it leaves out gets Ollama's defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from authz.core.names import (
    DEFAULT_HOST,
    DEFAULT_NAMESPACE,
    DEFAULT_TAG,
    names_a_source,
)

EVERYTHING = "*"

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
        if self.everything or name in self._exact:
            return True
        parts = _split(name)
        return any(all(map(_matches, wild, parts)) for wild in self._wild)

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(p for p in self.patterns if "*" not in p)

    @cached_property
    def _wild(self) -> tuple[tuple[str, ...], ...]:
        wild = (p for p in self.patterns if "*" in p and p != EVERYTHING)
        return tuple(_split(p) for p in wild)


def _split(name: str) -> tuple[str, ...]:
    host, namespace, model_and_tag = name.split("/")
    model, _, tag = model_and_tag.partition(":")
    return host, namespace, model, tag


def _matches(pattern: str, text: str) -> bool:
    """Match one part: the pieces between the stars, each at its first place."""
    first, *pieces = pattern.split("*")
    if not pieces:
        return pattern == text
    last = pieces.pop()
    if len(text) < len(first) + len(last):
        return False
    if not (text.startswith(first) and text.endswith(last)):
        return False
    position, end = len(first), len(text) - len(last)
    for piece in pieces:
        found = text.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True
