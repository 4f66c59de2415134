"""Ollama's model names, read as its server reads them, or refused.

One spelling, one model: what Ollama would read in a second way (a scheme, outer
white space, a source suffix) is refused here instead of being interpreted.
The grammar is that of Ollama 0.33, types/model/name.go and modelref.go.
"""

from __future__ import annotations

import re
from functools import lru_cache

from authz.core.model import Reason

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

_NAME = re.compile(
    r"(?:(?:(?P<host>\w[\w.:-]{0,349})/)?(?P<namespace>\w[\w-]{0,79})/)?"
    r"(?P<model>\w[\w.-]{0,79})(?::(?P<tag>\w[\w.-]{0,79}))?",
    re.ASCII,
)


# host (350), namespace, model and tag (80 each), and what stands between them.
_LONGEST = 350 + 3 * 80 + 3


def canonical(name: str) -> str | Reason:
    """Return ``host/namespace/model:tag`` in lower case, or why there is none.

    Lower case, because Ollama finds a model whatever the case of its name.
    """
    return _canonical(name) if len(name) <= _LONGEST else Reason.MODEL_UNGRAMMATICAL


@lru_cache(maxsize=4096)
def _canonical(name: str) -> str | Reason:
    parts = _NAME.fullmatch(name)
    if parts is None:
        return Reason.MODEL_UNGRAMMATICAL
    host, namespace, model, tag = parts.group("host", "namespace", "model", "tag")
    if tag is not None and names_a_source(tag):
        return Reason.MODEL_REMOTE
    return (
        f"{host or DEFAULT_HOST}/{namespace or DEFAULT_NAMESPACE}"
        f"/{model}:{tag or DEFAULT_TAG}"
    ).lower()


def names_a_source(tag: str) -> bool:
    """Tell whether Ollama takes this tag for where the model runs."""
    folded = tag.lower()
    return folded in {"cloud", "local"} or folded.endswith("-cloud")
