"""What `authz healthcheck --deep` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass

OK, OPEN, UNKNOWN = "ok", "open", "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and in which of the three states it is."""

    state: str
    text: str
