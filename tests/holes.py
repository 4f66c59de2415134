"""The files of envoy/ with holes in them, as holes.yaml opens them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from authz.local.envoy import config_sources

NAMES = ("envoy.yaml", "listener.yaml", "routes.yaml", "clusters.yaml")


@dataclass(frozen=True, slots=True)
class Hole:
    """An edit of one of our files, and the rule that it is against.

    The edit is at the first line with ``line`` in it, after the one line with
    ``under`` in it, if that is given: ``to`` takes the place of that text, ``then``
    is put below, ``gone`` takes the line away with all that belongs to it. The
    finding is where the edit is, or at the last line before with ``at`` in it, else
    at the first that has it.
    """

    rule: str
    line: str
    under: str = ""
    to: str | None = None
    then: str = ""
    gone: bool = False
    at: str = ""

    def opened(self) -> tuple[dict[str, bytes], str, int]:
        """Return the files with the hole, and where the finding must be."""
        files = {name: content.decode() for name, content in our_files().items()}
        name = self._file(files)
        lines = files[name].splitlines()
        index = self._index(lines)
        files[name] = "\n".join([*lines[:index], *self._edit(lines[index:])])
        edited = files[name].splitlines()
        place = name, index + 1 + bool(self.then)
        if self.at:
            before = [i for i in range(index, -1, -1) if self.at in edited[i]]
            place = (name, before[0] + 1) if before else self._first(files, name)
        return {each: text.encode() for each, text in files.items()}, *place

    def _first(self, files: dict[str, str], name: str) -> tuple[str, int]:
        """Return where ``at`` is, in the edited file or else in another."""
        return next(
            (each, number)
            for each in sorted(files, key=lambda other: other != name)
            for number, line in enumerate(files[each].splitlines(), 1)
            if self.at in line
        )

    def _file(self, files: dict[str, str]) -> str:
        wanted = self.under or self.line
        found = [
            name
            for name, text in files.items()
            for line in text.splitlines()
            if wanted in line
        ]
        assert len(found) == 1, f"{wanted!r} is in {found}"
        return found[0]

    def _index(self, lines: list[str]) -> int:
        under = [i for i, line in enumerate(lines) if self.under in line]
        start = under[0] if self.under else 0
        return next(i for i in range(start, len(lines)) if self.line in lines[i])

    def _edit(self, lines: list[str]) -> list[str]:
        first, *rest = lines
        if self.to is not None:
            first = first.replace(self.line, self.to)
        if self.gone:
            inside = _indent(first)
            end = next(i for i, line in enumerate(rest) if _indent(line) <= inside)
            return rest[end:]
        margin = " " * _indent(first)
        return [first, *(margin + line for line in self.then.splitlines()), *rest]


def our_files() -> dict[str, bytes]:
    """Return our files, as they are."""
    return {name: (config_sources() / name).read_bytes() for name in NAMES}


def holes() -> list[Hole]:
    """Return all holes."""
    text = Path(__file__).with_suffix(".yaml").read_text()
    return [Hole(**each) for each in yaml.safe_load(text)]


def _indent(line: str) -> int:
    """Return how deep a line is; an empty one is as deep as can be."""
    return len(line) - len(line.lstrip()) if line.strip() else len(line) + 1000
