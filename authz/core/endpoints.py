"""The routes of Ollama that may be reached, as data; what is not here is closed.

Ollama 0.33, server/routes.go. `make routes` compares this table with another tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from authz.core.model import Deny, Reason, Scope


@dataclass(frozen=True)
class Endpoint:
    """One route, and where a request to it names models.

    ``model_fields`` are the spellings of one name in a JSON body; Ollama takes the
    first that is not empty. ``further_fields`` name more models, each its own;
    ``optional_fields`` do if they are there.
    ``model_in_path`` is for a name that is the last segment of the path.
    ``switches`` are fields that must be unset, whatever a key may do.
    ``unnamed_fields`` hold models by other than their names: for keys of any model.
    ``takes_bytes`` marks a POST whose body is no JSON but any bytes.
    ``streams`` marks answers that come in parts unless the body says otherwise.
    ``lists_models`` marks answers that name models nobody asked for by name.
    """

    path: str
    methods: tuple[str, ...]
    scope: Scope
    model_fields: tuple[str, ...] = ()
    further_fields: tuple[str, ...] = ()
    optional_fields: tuple[str, ...] = ()
    model_in_path: bool = False
    switches: tuple[str, ...] = ()
    unnamed_fields: tuple[str, ...] = ()
    takes_bytes: bool = False
    streams: bool = False
    lists_models: bool = False

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The spellings of each name that a JSON body must have."""
        return (self.model_fields, *((field,) for field in self.further_fields))


def _inference(path: str, *, streams: bool = False) -> Endpoint:
    return Endpoint(
        path,
        ("POST",),
        Scope.INFERENCE,
        ("model",),
        # It answers with the prompt that the operator wrote for the model.
        switches=("_debug_render_only",),
        streams=streams,
    )


def _manage(
    path: str,
    *model_fields: str,
    method: str = "POST",
    further_fields: tuple[str, ...] = (),
    optional_fields: tuple[str, ...] = (),
    unnamed_fields: tuple[str, ...] = (),
    streams: bool = False,
) -> Endpoint:
    return Endpoint(
        path,
        (method,),
        Scope.MANAGE,
        model_fields,
        further_fields=further_fields,
        optional_fields=optional_fields,
        # Plain HTTP to a registry, and a model that runs on another machine.
        switches=("insecure", "remote_host"),
        unnamed_fields=unnamed_fields,
        streams=streams,
    )


_GET = ("GET",)
_GET_HEAD = ("GET", "HEAD")

_TABLE = (
    _inference("/api/generate", streams=True),
    _inference("/api/chat", streams=True),
    _inference("/api/embed"),
    _inference("/api/embeddings"),
    _inference("/v1/chat/completions"),
    _inference("/v1/completions"),
    _inference("/v1/embeddings"),
    _inference("/v1/messages"),
    _inference("/v1/responses"),
    Endpoint("/", _GET_HEAD, Scope.READ),
    Endpoint("/api/version", _GET_HEAD, Scope.READ),
    Endpoint("/api/show", ("POST",), Scope.READ, ("model", "name")),
    Endpoint("/api/tags", _GET_HEAD, Scope.READ, lists_models=True),
    Endpoint("/api/ps", _GET, Scope.READ, lists_models=True),
    Endpoint("/v1/models", _GET, Scope.READ, lists_models=True),
    Endpoint("/v1/models/:model", _GET, Scope.READ, model_in_path=True),
    _manage("/api/pull", "model", "name", streams=True),
    _manage("/api/push", "model", "name", streams=True),
    _manage(
        "/api/create",
        *("model", "name"),
        optional_fields=("from",),
        # Digests, and what older versions read: FROM in a text, a path.
        unnamed_fields=("files", "adapters", "draft_files", "modelfile", "path"),
        streams=True,
    ),
    _manage("/api/copy", "source", further_fields=("destination",)),
    _manage("/api/delete", "model", "name", method="DELETE"),
    # A blob belongs to no model until `create` gives it a name: whoever sends one, or
    # asks whether it is there, must be allowed all of them.
    Endpoint("/api/blobs/:digest", ("POST", "HEAD"), Scope.MANAGE, takes_bytes=True),
)
ENDPOINTS = {endpoint.path: endpoint for endpoint in _TABLE}

# Routes that Ollama has and nobody reaches: (methods, why).
CLOSED = {
    "/api/status": (_GET, "tells how the server is set up"),
    "/api/me": (("POST",), "the server's own account"),
    "/api/signout": (("POST",), "the server's own account"),
    "/api/user/keys/:encodedKey": (("DELETE",), "the server's own account"),
    "/api/experimental/web_search": (("POST",), "spends the server's account"),
    "/api/experimental/web_fetch": (("POST",), "spends the server's account"),
    "/api/experimental/model-recommendations": (_GET, "may change at any release"),
    "/v1/audio/transcriptions": (
        ("POST",),
        "its model is a field of a multipart form, which has too many readings",
    ),
}

# Stands for what belongs to no route, where routes are counted and logged.
OTHER = "other"

_LITERAL = {path: endpoint for path, endpoint in ENDPOINTS.items() if ":" not in path}
_MODEL_PATH = re.compile(r"/v1/models/[A-Za-z0-9_][A-Za-z0-9_.:-]*")
_BLOB_PATH = re.compile(r"/api/blobs/sha256[:-][0-9a-fA-F]{64}")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.:-]+")


def find_endpoint(method: str, path: str) -> Endpoint | Deny:
    """Look up a literal path. Ollama routes on the decoded one: no escapes here."""
    endpoint = _at(path)
    if endpoint is None:
        is_plain = _PLAIN_PATH.fullmatch(path)
        return Deny(Reason.PATH_UNKNOWN if is_plain else Reason.PATH_ODD)
    if method not in endpoint.methods:
        return Deny(Reason.METHOD_UNKNOWN, endpoint.methods)
    return endpoint


def route_of(path: str) -> str:
    """Return the route that a path belongs to, or OTHER: one of few, for any path."""
    endpoint = _at(path)
    return OTHER if endpoint is None else endpoint.path


def _at(path: str) -> Endpoint | None:
    return _LITERAL.get(path) or _with_segment(path)


def _with_segment(path: str) -> Endpoint | None:
    if _MODEL_PATH.fullmatch(path):
        return ENDPOINTS["/v1/models/:model"]
    if _BLOB_PATH.fullmatch(path):
        return ENDPOINTS["/api/blobs/:digest"]
    return None
