"""Filters of replies and access logs, asked as Envoy would ask them.

For a status and what authz has said, as `namespace:key`. What cannot be known here
(response flags, expressions) makes an answer None, neither true nor false.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.accesslog.v3 import ComparisonFilterOp as Op
from envoy_data_plane.envoy.data.accesslog.v3 import AccessLogType as Kind

if TYPE_CHECKING:
    from collections.abc import Collection

    from envoy_data_plane.envoy.config.accesslog.v3 import (
        AccessLogFilter,
        ComparisonFilter,
        MetadataFilter,
    )

    Said = Collection[str]


def takes(
    which: AccessLogFilter | None, status: int, said: Said, kind: Kind = Kind.NotSet
) -> bool | None:
    """Whether a filter passes; None where that cannot be known.

    ``kind`` is that of an entry of a log; replies have none.
    """
    if which is None:
        return True
    if which.status_code_filter is not None:
        return _compares(which.status_code_filter.comparison, status)
    if which.metadata_filter is not None:
        return _has(which.metadata_filter, said)
    if joined := which.and_filter or which.or_filter:
        answers = [takes(each, status, said, kind) for each in joined.filters]
        decides = which.or_filter is not None
        return (
            decides if decides in answers else None if None in answers else not decides
        )
    if which.log_type_filter is not None:
        listed = which.log_type_filter
        return (kind in listed.types) is not listed.exclude
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
    value = matcher.value if matcher else None
    if matcher is None or value is None or matcher.invert:
        return None
    if not value.present_match and value.null_match is None:
        return None
    name = ":".join([matcher.filter, *(each.key or "" for each in matcher.path)])
    if name in said:  # with a value, so it is not null
        return bool(value.present_match)
    return which.match_if_key_not_found is not False
