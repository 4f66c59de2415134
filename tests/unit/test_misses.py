"""The token bucket of each address that unknown keys come from."""

from __future__ import annotations

import pytest

from authz.core.misses import Misses

HERE, THERE = "192.0.2.1", "192.0.2.2"


def test_a_source_has_its_burst_then_its_rate() -> None:
    misses = Misses(10)
    for _ in range(10):
        assert not misses.exceeded(HERE, 0)
        misses.count(HERE, 0)
    assert misses.exceeded(HERE, 0)
    assert misses.exceeded(HERE, 0.04)
    assert not misses.exceeded(HERE, 0.06)
    assert not misses.exceeded(THERE, 0)


def test_misses_that_were_under_way_are_charged_too() -> None:
    misses = Misses(10)
    for _ in range(14):
        misses.count(HERE, 0)
    assert misses.exceeded(HERE, 0.44)
    assert not misses.exceeded(HERE, 0.46)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.2", "::ffff:192.0.2.1", False),
        ("", "no address", True),
    ],
)
def test_an_ipv6_site_is_one_source(one: str, other: str, together: bool) -> None:
    misses = Misses(1)
    misses.count(one, 0)
    assert misses.exceeded(other, 0) is together


def test_a_wider_network_is_one_source_where_that_is_asked_for() -> None:
    misses = Misses(1, ipv6_prefix=48)
    misses.count("2001:db8:7:1::1", 0)
    assert misses.exceeded("2001:db8:7:ffff::2", 0)
    assert not misses.exceeded("2001:db8:8:1::1", 0)
    assert not misses.exceeded(HERE, 0)


def test_the_table_is_bounded_and_forgets_who_missed_longest_ago() -> None:
    misses = Misses(1)
    for number in range(10_001):
        misses.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0)
    assert not misses.exceeded("10.0.0.0", 0)
    assert misses.exceeded("10.0.0.1", 0)


def test_a_clock_that_is_set_back_keeps_nobody_out() -> None:
    misses = Misses(10)
    for _ in range(10):
        misses.count(HERE, 3600)
    assert not misses.exceeded(HERE, 0)
