"""The matrix of docs/clients.md says what these tests run, no more and no less."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.clients.drivers import DRIVERS

DOCUMENT = Path(__file__).parents[2] / "docs" / "clients.md"
LABELS = {
    "`ollama`, Python": "ollama",
    "`openai`, chat": "openai",
    "`openai`, responses": "openai responses",
    **{f"`{name}`": name for name in DRIVERS},
}
FEATURES = ("models", "show", "chat", "stream", "tool", "embed", "stream")


def rows() -> dict[str, list[str]]:
    """Return the rows of "What works" by the names of the drivers."""
    section = DOCUMENT.read_text().partition("## What works")[2].partition("\n## ")[0]
    cells = [line.split("|")[1:-1] for line in section.splitlines() if line[:1] == "|"]
    table = {cell[0].strip(): [c.strip() for c in cell[1:]] for cell in cells}
    return {LABELS[name]: row for name, row in table.items() if name in LABELS}


@pytest.mark.parametrize("name", DRIVERS)
def test_a_row_names_the_version_and_what_the_client_was_seen_to_do(name: str) -> None:
    able = ["yes" if hasattr(DRIVERS[name], feature) else "" for feature in FEATURES]
    assert rows()[name] == [version(name.partition(" ")[0]), *able]
