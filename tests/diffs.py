"""The diffs of a page, applied so strictly that one which is out of date fails."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_HEADING = re.compile(r"^#+ (?P<title>.+)$")
_BLOCK = "```diff"
_END = "```"
_FILE = re.compile(
    r"^--- (?:a/(?P<old>\S+)|/dev/null)\n\+\+\+ b/(?P<new>\S+)\n", re.MULTILINE
)
_HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@.*\n", re.MULTILINE)


class StaleDiffError(ValueError):
    """The diff is none, or does not fit the files as they are."""


@dataclass(frozen=True, slots=True)
class _Hunk:
    old: list[str]
    new: list[str]


def diffs_of(page: str) -> Mapping[str, str]:
    """Return the diffs of a page in Markdown by the heading that each stands under."""
    found: dict[str, str] = {}
    title, lines = "", iter(page.splitlines(keepends=True))
    for line in lines:
        if heading := _HEADING.match(line):
            title = heading["title"]
        elif line.rstrip("\n") == _BLOCK:
            found[title] = found.get(title, "") + "".join(_until_end(lines))
        elif line.startswith(_END):
            list(_until_end(lines))  # a "#" in there is no heading
    return found


def apply_diff(diff: str, root: Path) -> None:
    """Change the files under ``root``, as ``patch -p1`` there would, or raise.

    What a hunk takes away, context included, must stand in the file exactly once.
    Line numbers are not compared: what is above an example may change.
    """
    headers = list(_FILE.finditer(diff))
    if not headers or headers[0].start():
        msg = "a diff begins with --- a/FILE and +++ b/FILE"
        raise StaleDiffError(msg)
    ends = [*(header.start() for header in headers[1:]), len(diff)]
    for header, end in zip(headers, ends, strict=True):
        hunks = list(_hunks(diff[header.end() : end]))
        _change(root / header["new"], hunks, new=header["old"] is None)


def _until_end(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith(_END):
            return
        yield line


def _hunks(text: str) -> Iterator[_Hunk]:
    heads = list(_HUNK.finditer(text))
    if not heads or heads[0].start():
        msg = f"a file has hunks that begin with @@: {text[:80]!r}"
        raise StaleDiffError(msg)
    ends = [*(head.start() for head in heads[1:]), len(text)]
    for head, end in zip(heads, ends, strict=True):
        yield _hunk(head, text[head.end() : end])


def _hunk(head: re.Match[str], body: str) -> _Hunk:
    # Editors take the one space from a line of context that is empty.
    lines = [" \n" if line == "\n" else line for line in body.splitlines(keepends=True)]
    old = [line[1:] for line in lines if line[0] in " -"]
    new = [line[1:] for line in lines if line[0] in " +"]
    told = tuple(int(count or 1) for count in head.groups())
    if told != (len(old), len(new)) or {line[0] for line in lines} - set(" +-"):
        msg = f"{head[0].strip()} has {len(old)} old and {len(new)} new lines"
        raise StaleDiffError(msg)
    return _Hunk(old, new)


def _change(file: Path, hunks: list[_Hunk], *, new: bool) -> None:
    lines = [] if new else file.read_text().splitlines(keepends=True)
    for hunk in hunks:
        size = len(hunk.old)
        places = [
            at
            for at in range(len(lines) - size + 1)
            if lines[at : at + size] == hunk.old
        ]
        if len(places) != 1:
            msg = f"{file.name} has this {len(places)} times:\n{''.join(hunk.old)}"
            raise StaleDiffError(msg)
        lines[places[0] : places[0] + size] = hunk.new
    file.write_text("".join(lines))
