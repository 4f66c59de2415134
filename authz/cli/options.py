"""Options of `authz keys`, read and checked; what is wrong is said in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import click

from authz.config import parse_duration
from authz.core.allowlist import canonical_pattern
from authz.core.credential import holds_key
from authz.core.limits import Budget, Limits, parse_limits
from authz.core.model import Scope
from authz.core.parameters import Parameters, parse_parameters
from authz.ports import Expiry

T = TypeVar("T")
_Read = Callable[[object, click.Parameter, str], T]

_LABEL = re.compile(r"(?! )[A-Za-z0-9._@/ -]{1,80}(?<! )")
SCOPES = [Scope.INFERENCE.value, Scope.READ.value]
_MOST_PATTERNS = 1_000
_MOST_GRACE = timedelta(days=366)
# A date that is still one in every time zone.
_FURTHEST = datetime(9999, 12, 30, tzinfo=UTC)


def _if_given(read: _Read[T]) -> _Read[T | None]:
    """Leave an option out that is not given."""

    def read_if_given(context: object, option: click.Parameter, text: str) -> T | None:
        return None if text is None else read(context, option, text)

    return read_if_given


def _label(_context: object, option: click.Parameter, text: str) -> str:
    if holds_key(text):
        msg = f"--{option.name} must not hold a key: it is kept and shown"
        raise click.UsageError(msg)
    if text and not _LABEL.fullmatch(text):
        msg = f"--{option.name} takes 1 to 80 of A-Z a-z 0-9 . _ @ / - and space"
        raise click.UsageError(msg)
    return text


owner = _if_given(_label)
"""Read an owner, which may be empty."""


def name(context: object, option: click.Parameter, text: str) -> str:
    """Read a name; commands take a name or an id, so it must not look like one."""
    try:
        UUID(text)
    except ValueError:
        if text:
            return _label(context, option, text)
    msg = "--name must not be empty or look like an id"
    raise click.UsageError(msg)


def id_or_name(_context: object, _argument: object, text: str) -> str:
    """Read what names a key; what cannot be one is not asked for."""
    if not _LABEL.fullmatch(text) or holds_key(text):
        msg = "ID is the id or the name of a key"
        raise click.UsageError(msg)
    return text


key = _if_given(id_or_name)
"""Read what names a key where that is an option."""


@_if_given
def models(_context: object, _option: object, text: str) -> tuple[str, ...]:
    """Read patterns, separated by commas, into their canonical form."""
    patterns = [pattern.strip() for pattern in text.split(",")]
    if len(patterns) > _MOST_PATTERNS:
        msg = f"--models takes at most {_MOST_PATTERNS} patterns"
        raise click.UsageError(msg)
    canonical = {pattern: canonical_pattern(pattern) for pattern in patterns}
    for pattern, form in canonical.items():
        if form is None:
            msg = f"--models: {pattern!r} is no model name or pattern"
            raise click.UsageError(msg)
    return tuple(dict.fromkeys(filter(None, canonical.values())))


@_if_given
def scopes(_context: object, _option: object, text: str) -> tuple[str, ...]:
    """Read scopes, separated by commas."""
    grantable = [scope.value for scope in Scope]
    asked = tuple(dict.fromkeys(text.split(",")))
    if not set(asked).issubset(grantable):
        msg = f"--scopes takes {', '.join(grantable)}, separated by commas"
        raise click.UsageError(msg)
    return asked


@_if_given
def parameters(_context: object, _option: object, text: str) -> Parameters:
    """Read a preset and single limits, separated by commas."""
    try:
        return parse_parameters(text)
    except ValueError as error:
        msg = f"--parameters: {error}"
        raise click.UsageError(msg) from None


def limit(_context: object, option: click.Parameter, text: str) -> int | Budget | None:
    """Read one limit; ``none`` ends it and is 0."""
    if text is None or text == "none":
        return None if text is None else 0
    try:
        value: int | Budget = getattr(
            parse_limits(f"{option.name}={text}"), str(option.name)
        )
    except ValueError:
        example = "1000000/day or /month" if option.name == "budget" else "60"
        msg = f"--{option.name} takes a number above 0, as in {example}, or none"
        raise click.UsageError(msg) from None
    return value


@_if_given
def limits(_context: object, _option: object, text: str) -> Limits:
    """Read all limits, separated by commas."""
    try:
        return parse_limits(text)
    except ValueError as error:
        msg = f"--limits: {error}"
        raise click.UsageError(msg) from None


@_if_given
def expires(_context: object, _option: object, text: str) -> datetime:
    """Read ``90d`` or a date (UTC unless it says otherwise)."""
    now = datetime.now(UTC)
    try:
        moment = now + parse_duration(text)
    except ValueError:
        moment = _date(text)
    if not now < moment < _FURTHEST:
        msg = "--expires must lie in the future, and before the year 10000"
        raise click.UsageError(msg)
    return moment


def expiry(context: object, option: click.Parameter, text: str) -> Expiry | None:
    """Read an expiry that may also be ``never``."""
    if text == "never":
        return Expiry(None)
    moment = expires(context, option, text)
    return None if moment is None else Expiry(moment)


def grace(_context: object, _option: object, text: str) -> timedelta:
    """Read how long old secrets live on: ``24h``, or ``0``."""
    try:
        duration = timedelta() if text in {"0", "0s"} else parse_duration(text)
    except ValueError:
        duration = None
    if duration is None or duration > _MOST_GRACE:
        msg = "--grace takes 0 or a duration up to 366d, as in 24h"
        raise click.UsageError(msg)
    return duration


def since(_context: object, _option: object, text: str | None) -> datetime | None:
    """Read how far back to look."""
    try:
        return None if text is None else datetime.now(UTC) - parse_duration(text)
    except (ValueError, OverflowError):
        msg = "--since takes a duration as in 7d"
        raise click.UsageError(msg) from None


def _date(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        msg = "--expires takes a duration as in 90d or a date as in 2030-01-31"
        raise click.UsageError(msg) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
