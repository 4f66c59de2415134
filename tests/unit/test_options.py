"""Options of `authz keys` that bound what a key may hold."""

from __future__ import annotations

import click
import pytest

from authz.cli import options

OPTION = click.Option(["--any"])


def test_every_scope_may_be_granted_once() -> None:
    assert options.scopes(None, OPTION, "read,manage,read") == ("read", "manage")


@pytest.mark.parametrize("text", ["", "admin", "read,", "read, manage", "READ"])
def test_nothing_else_is_a_scope(text: str) -> None:
    with pytest.raises(click.UsageError, match="inference, read, manage"):
        options.scopes(None, OPTION, text)


def test_a_key_takes_a_thousand_patterns_and_no_more() -> None:
    patterns = [f"m{number}:*" for number in range(1_000)]
    assert len(options.models(None, OPTION, ",".join(patterns)) or ()) == 1_000
    with pytest.raises(click.UsageError, match="at most 1000 patterns"):
        options.models(None, OPTION, ",".join([*patterns, "m"]))


def test_no_pattern_is_longer_than_a_name() -> None:
    with pytest.raises(click.UsageError, match="no model name or pattern"):
        options.models(None, OPTION, "a" * 80 + "*")
