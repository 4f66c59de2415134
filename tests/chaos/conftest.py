"""What the tests of chaos share: the recovery times, printed at the end of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

_RECOVERIES = pytest.StashKey[list[str]]()


@pytest.fixture
def recovered(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Note what took how many seconds to be well again."""

    def note(what: str, seconds: float) -> None:
        lines = request.config.stash.setdefault(_RECOVERIES, [])
        lines.append(f"{seconds:6.2f} s  {request.node.name}: {what}")

    return note


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the recovery times."""
    lines = config.stash.get(_RECOVERIES, [])
    if lines:
        terminalreporter.section("recovery")
        terminalreporter.write("\n".join([*lines, ""]))
