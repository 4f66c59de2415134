"""Several hosts of a URL are asked at once: each is found in it."""

from __future__ import annotations

import pytest

from authz.adapters.postgres import hosts_of


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p@one/db", [{}]),
        ("postgresql:///db?host=/run/pg", [{}]),
        (
            "postgresql://u:p@one,two:6543,[::1]:7000/db",
            [
                {"host": "one", "port": 5432},
                {"host": "two", "port": 6543},
                {"host": "::1", "port": 7000},
            ],
        ),
        (
            "postgresql:///db?host=/run/a,/run/b",
            [{"host": "/run/a", "port": 5432}, {"host": "/run/b", "port": 5432}],
        ),
        (
            "postgresql:///db?host=/run/a,two&port=1,2",
            [{"host": "/run/a", "port": 1}, {"host": "two", "port": 2}],
        ),
    ],
)
def test_each_host_of_a_url_is_asked(url: str, hosts: list[dict[str, object]]) -> None:
    assert hosts_of(url) == hosts
