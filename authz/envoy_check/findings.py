"""What the linter says, and the list of everything that it can say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from authz.envoy_check.secrets import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from authz.envoy_check.config import Config


_LONGEST = 500


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line of a file, counted from 1."""

    file: str
    line: int


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong. No text holds a value that may be a secret."""

    file: str
    line: int
    rule: str
    what: str
    why: str
    mend: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}"
        return f"{place}: {self.rule}: {self.what} Why: {self.why} Mend: {self.mend}"


Problem = tuple[Place, str]
if TYPE_CHECKING:
    Look = Callable[[Config], Iterator[Problem]]


@dataclass(frozen=True, slots=True)
class Rule:
    """What must be so, why, and how to mend it.

    ``look`` finds what is against it; what is found while files are read has none.
    """

    name: str
    why: str
    mend: str
    look: Look | None = None

    def at(self, place: Place, what: str) -> Finding:
        """Return what is wrong at a place, on one line and without secrets."""
        shown = SECRET.sub("[secret]", " ".join(what.split()))[:_LONGEST]
        return Finding(place.file, place.line, self.name, shown, self.why, self.mend)


RULES: dict[str, Rule] = {}


def found_in_reading(name: str, *, why: str, mend: str) -> Rule:
    """Enter a rule into the list whose findings come from reading the files."""
    return RULES.setdefault(name, Rule(name, why, mend))


def rule(name: str, *, why: str, mend: str) -> Callable[[Look], Look]:
    """Enter a function into the list that finds what is against a rule."""

    def enter(look: Look) -> Look:
        RULES[name] = Rule(name, why, mend, look)
        return look

    return enter
