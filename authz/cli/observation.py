"""What `authz healthcheck --deep` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Whether it is as it should be; UNKNOWN where that cannot be seen from here."""

    OK = "ok"
    OPEN = "open"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that was looked at, and in which state it is."""

    state: State
    text: str
