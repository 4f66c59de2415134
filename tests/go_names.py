"""How Ollama reads a model's name: a model of modelref.go and name.go.

Written from right to left as Ollama does it, not as one pattern, so that the
gateway's own reading can be compared with it.
"""

from __future__ import annotations

import string

# Unicode's White_Space, which Python's strip() exceeds.
_WHITE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_FIRST = frozenset(string.ascii_letters + string.digits + "_")
_MISSING = "!MISSING!"


class BadName(Exception):
    """Ollama refuses the name."""


def trimmed(name: str) -> str:
    """Drop the white space that Ollama drops."""
    return name.strip(_WHITE)


def source_and_base(name: str) -> tuple[str, str]:
    """Split into where the model runs ("" if unsaid) and the rest of the name."""
    source, base = _split_source(trimmed(name))
    if source and _split_source(base)[0]:
        raise BadName
    return source, base


def _split_source(name: str) -> tuple[str, str]:
    base, colon, suffix = name.rpartition(":")
    suffix = trimmed(suffix)
    folded = suffix.lower()
    if not colon:
        return "", name
    if folded in {"cloud", "local"}:
        return folded, base
    if "/" not in suffix and folded.endswith("-cloud"):
        return "cloud", f"{base}:{suffix[: -len('-cloud')]}"
    return "", name


def canonical(base: str) -> str:
    """Return ``host/namespace/model:tag`` with defaults, in lower case."""
    rest, tag = base, ""
    if base.rfind(":") > base.rfind("/"):
        rest, tag = _split_last(base, ":")
    namespace, host = "", ""
    model = rest
    if "/" in rest:
        namespace, model = _split_last(rest, "/")
    if "/" in namespace:
        host, namespace = _split_last(namespace, "/")
    if "://" in host:
        host = host.partition("://")[2]
    parts = (
        _checked(host or "registry.ollama.ai", 350, "_.:-"),
        _checked(namespace or "library", 80, "_-"),
        _checked(model, 80, "_.-"),
        _checked(tag or "latest", 80, "_.-"),
    )
    return "{}/{}/{}:{}".format(*parts).lower()


def _split_last(text: str, mark: str) -> tuple[str, str]:
    left, _mark, right = text.rpartition(mark)
    return left or _MISSING, right or _MISSING


def _checked(part: str, longest: int, others: str) -> str:
    allowed = frozenset(string.ascii_letters + string.digits + others)
    if not part or len(part) > longest or part[0] not in _FIRST:
        raise BadName
    if not allowed.issuperset(part):
        raise BadName
    return part
