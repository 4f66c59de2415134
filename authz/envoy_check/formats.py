"""Envoy's formats of logs and replies: which commands stand in them."""

from __future__ import annotations

import re

from authz.core.body import decode_strictly

_LONGEST = 4096
_COMMAND = re.compile(r"%([A-Z0-9_]+)(?:\(([^)]*)\))?(?::[0-9]+)?%|%%")
Command = tuple[str, str]


def commands(text: str) -> list[Command] | None:
    """Return the commands of a format with what is in brackets; None if unclear."""
    found: list[Command] = []
    at = text.find("%")
    if at >= 0 and len(text) > _LONGEST:
        return None
    while at >= 0:
        match = _COMMAND.match(text, at)
        if match is None:
            return None
        name, param = match[1], match[2] or ""
        inner = _coalesced(param) if name == "COALESCE" else [(name, param)]
        if inner is None:
            return None
        found += inner if name else []
        at = text.find("%", match.end())
    return found


def _coalesced(param: str) -> list[Command] | None:
    """Return the commands of which the first that has a value is printed."""
    try:
        listed = decode_strictly(param.encode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(listed, dict) or listed.keys() != {"operators"}:
        return None
    found: list[Command] = []
    for each in listed["operators"] if isinstance(listed["operators"], list) else []:
        entry = {"command": each} if isinstance(each, str) else each
        if not isinstance(entry, dict):
            return None
        name, inner = entry.get("command"), entry.get("param", "")
        if not isinstance(name, str) or not isinstance(inner, str):
            return None
        found.append((name, inner))
    return found
