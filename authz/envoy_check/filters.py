"""Filters of replies and access logs, asked as Envoy would ask them.

For a status and what authz has said, as `namespace:key`. What cannot be known here
(response flags, expressions) makes an answer None, neither true nor false.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.accesslog.v3 import ComparisonFilterOp as Op

if TYPE_CHECKING:
    from collections.abc import Collection

    from envoy_data_plane.envoy.config.accesslog.v3 import (
        AccessLogFilter,
        ComparisonFilter,
        MetadataFilter,
    )

    Said = Collection[str]


def takes(which: AccessLogFilter | None, status: int, said: Said) -> bool | None:
    """Whether a filter passes; None where that cannot be known."""
    if which is None:
        return True
    if which.status_code_filter is not None:
        return _compares(which.status_code_filter.comparison, status)
    if which.metadata_filter is not None:
        return _has(which.metadata_filter, said)
    if which.and_filter is not None:
        answers = [takes(each, status, said) for each in which.and_filter.filters]
        return False if False in answers else None if None in answers else True
    if which.or_filter is not None:
        answers = [takes(each, status, said) for each in which.or_filter.filters]
        return True if True in answers else None if None in answers else False
    return None


def _compares(comparison: ComparisonFilter | None, status: int) -> bool | None:
    if comparison is None:
        return None
    bound = comparison.value.default_value if comparison.value else 0
    return {
        Op.EQ: status == bound,
        Op.GE: status >= bound,
        Op.LE: status <= bound,
        Op.NE: status != bound,
    }.get(comparison.op)


def _has(which: MetadataFilter, said: Said) -> bool | None:
    matcher = which.matcher
    if matcher is None or not (matcher.value and matcher.value.present_match):
        return None
    name = ":".join([matcher.filter, *(each.key or "" for each in matcher.path)])
    return name in said or which.match_if_key_not_found is not False
