"""The routes of Ollama that may be reached, as data; what is not here is closed.

Ollama 0.33, server/routes.go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from authz.core.model import Deny, Reason, Scope


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route; ``model_fields`` are the fields of its body that name a model.

    Where there are several, Ollama takes the first that is not empty.
    ``lists_models`` marks answers that name models nobody asked for by name.
    """

    path: str
    methods: tuple[str, ...]
    scope: Scope
    model_fields: tuple[str, ...] = ()
    lists_models: bool = False


_POST = ("POST",)
_GET = ("GET",)
_GET_HEAD = ("GET", "HEAD")
_MODEL = ("model",)
_MODEL_OR_NAME = ("model", "name")

_TABLE = (
    Endpoint("/api/generate", _POST, Scope.INFERENCE, _MODEL),
    Endpoint("/api/chat", _POST, Scope.INFERENCE, _MODEL),
    Endpoint("/api/embed", _POST, Scope.INFERENCE, _MODEL),
    Endpoint("/api/embeddings", _POST, Scope.INFERENCE, _MODEL),
    Endpoint("/v1/chat/completions", _POST, Scope.INFERENCE, _MODEL),
    Endpoint("/v1/completions", _POST, Scope.INFERENCE, _MODEL),
    Endpoint("/v1/embeddings", _POST, Scope.INFERENCE, _MODEL),
    Endpoint("/v1/messages", _POST, Scope.INFERENCE, _MODEL),
    Endpoint("/api/show", _POST, Scope.READ, _MODEL_OR_NAME),
    Endpoint("/api/version", _GET_HEAD, Scope.READ),
    Endpoint("/api/tags", _GET_HEAD, Scope.READ, lists_models=True),
    Endpoint("/api/ps", _GET, Scope.READ, lists_models=True),
    Endpoint("/v1/models", _GET, Scope.READ, lists_models=True),
    Endpoint("/api/pull", _POST, Scope.MANAGE),
    Endpoint("/api/push", _POST, Scope.MANAGE),
    Endpoint("/api/create", _POST, Scope.MANAGE),
    Endpoint("/api/copy", _POST, Scope.MANAGE),
    Endpoint("/api/delete", ("DELETE",), Scope.MANAGE),
)
ENDPOINTS = {endpoint.path: endpoint for endpoint in _TABLE}

_BLOBS = Endpoint("/api/blobs/:digest", ("POST", "HEAD"), Scope.MANAGE)
_BLOB_PATH = re.compile(r"/api/blobs/sha256[:-][0-9a-fA-F]{64}")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.:-]+")


def find_endpoint(method: str, path: str) -> Endpoint | Deny:
    """Look up a literal path. Ollama routes on the decoded one: no escapes here."""
    if not _PLAIN_PATH.fullmatch(path):
        return Deny(Reason.PATH_ODD)
    endpoint = ENDPOINTS.get(path) or (_BLOBS if _BLOB_PATH.fullmatch(path) else None)
    if endpoint is None:
        return Deny(Reason.PATH_UNKNOWN)
    if method not in endpoint.methods:
        return Deny(Reason.METHOD_UNKNOWN, endpoint.methods)
    return endpoint
