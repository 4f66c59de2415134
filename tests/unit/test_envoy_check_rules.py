"""Every rule of `authz check-envoy` sees the hole that it is for, and where it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from authz.envoy_check import RULES, check
from authz.envoy_check.validate import validate
from authz.local.envoy import config_sources, envoy_binary
from tests.holes import Hole, holes, our_files

HOLES = holes()
DOCS = Path(__file__).parents[2] / "docs" / "check-envoy.md"


def test_our_own_files_pass() -> None:
    assert check(our_files()).findings == []
    assert validate(envoy_binary(), our_files()) == []


@pytest.mark.parametrize(
    "hole",
    [each for each in HOLES if each.rule != "envoy-refuses"],
    ids=lambda hole: hole.rule,
)
def test_a_hole_is_found_where_it_is(hole: Hole) -> None:
    files, name, line = hole.opened()
    found = [each for each in check(files).findings if each.rule == hole.rule]
    assert (name, line) in [(each.file, each.line) for each in found]


def test_what_envoy_refuses_is_found_where_it_is() -> None:
    (hole,) = [each for each in HOLES if each.rule == "envoy-refuses"]
    files, name, line = hole.opened()
    (found,) = validate(envoy_binary(), files)
    assert (found.rule, found.file, found.line) == (hole.rule, name, line)
    assert "GET|(HEAD" in found.what


def test_no_rule_is_without_a_hole() -> None:
    assert {each.rule for each in HOLES} == RULES.keys()


def test_the_documentation_lists_the_rules_that_there_are() -> None:
    documented = re.findall(r"(?m)^\| `([a-z0-9-]+)` \| (.*) \|$", DOCS.read_text())
    assert documented == [(name, RULES[name].why) for name in sorted(RULES)]


def test_every_place_marked_hole_has_a_rule_or_a_reason() -> None:
    """Who adds a mark adds a row to the table of the documentation."""
    files = config_sources().glob("*.yaml")
    marks = sum(file.read_text().count("HOLE:") for file in files)
    rows = re.findall(r"(?m)^\| \w+\.yaml: .* \| (.*) \|$", DOCS.read_text())
    assert len(rows) == marks
    assert {
        name for row in rows for name in re.findall(r"`(.*?)`", row)
    } <= RULES.keys()
