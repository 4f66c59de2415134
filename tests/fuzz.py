"""Search for inputs that break a property: ``python -m tests.fuzz [seconds]``.

The same properties as in the tests, with fresh seeds for as long as it is told.
"""

from __future__ import annotations

import importlib
import sys
import time
from functools import wraps
from itertools import cycle
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    Property = Callable[[], None]

_PROPERTIES = "tests.unit.test_properties"
_ROUND = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Counter:
    """How many examples were tried."""

    def __init__(self) -> None:
        self.examples = 0

    def watch(self, prop: Any) -> None:  # noqa: ANN401 - Hypothesis adds attributes
        """Count the examples of a property."""
        test = prop.hypothesis.inner_test

        @wraps(test)
        def counted(*args: object, **kwargs: object) -> None:
            self.examples += 1
            test(*args, **kwargs)

        prop.hypothesis.inner_test = counted


def find_properties() -> list[Property]:
    """Return the tests that Hypothesis feeds, set to short rounds."""
    settings.register_profile("fuzz", _ROUND)
    settings.load_profile("fuzz")  # read when the module below is imported
    module = importlib.import_module(_PROPERTIES)
    return [test for test in vars(module).values() if hasattr(test, "hypothesis")]


def run(seconds: float) -> None:
    """Run the properties in turns; raise what breaks the first one, shrunk."""
    properties = find_properties()
    counter = Counter()
    for prop in properties:
        counter.watch(prop)
    end = time.monotonic() + seconds
    try:
        for prop in cycle(properties):
            if time.monotonic() >= end:
                break
            prop()
    finally:
        report = f"{counter.examples} examples of {len(properties)} properties"
        print(report)  # noqa: T201 - a program's result


if __name__ == "__main__":
    run(float(sys.argv[1]) if len(sys.argv) > 1 else 60)
