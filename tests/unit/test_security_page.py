"""What docs/security.md and the decisions point at is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/security.md"
PAGES = [PAGE, ROOT / "docs/envoy.md", *sorted((ROOT / "docs/decisions").glob("*.md"))]
NODE = re.compile(r"^(tests/\S+\.py)::(test_\w+)$", re.MULTILINE)
# A promise is a heading with the tests that hold it.
PROMISE = re.compile(r"^### (?P<title>.+)\n(?P<text>(?:(?!^##).*\n)+)", re.MULTILINE)
PLACE = re.compile(
    r"`((?:authz|benchmarks|deploy|docs|envoy|protos|tests)/[\w./-]*[\w/])`"
)
LINK = re.compile(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def defined_in(file: Path) -> set[str]:
    """Return the names of the tests that a module defines."""
    tree = ast.parse(file.read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in tree.body if isinstance(node, kinds)}


def test_each_test_that_holds_a_promise_exists() -> None:
    named = NODE.findall(PAGE.read_text())
    assert named
    defined = {file: defined_in(ROOT / file) for file, _ in named}
    assert [(file, name) for file, name in named if name not in defined[file]] == []


def test_each_promise_is_held_by_a_test() -> None:
    promises = {
        found["title"]: NODE.findall(found["text"])
        for found in PROMISE.finditer(PAGE.read_text())
    }
    assert len(promises) > 8
    assert [title for title, tests in promises.items() if not tests] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_file_that_a_page_names_exists(page: Path) -> None:
    named = PLACE.findall(page.read_text())
    assert [place for place in named if not list(ROOT.glob(place))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_of_a_page_leads_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        anchors = map(anchor_of, HEADING.findall(target.read_text()))
        assert not anchor or anchor in anchors, f"{path}#{anchor}"


def anchor_of(heading: str) -> str:
    """Return what a link to a heading says, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
