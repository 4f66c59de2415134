"""Verdicts of the pure core on one request, as its tests ask for them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from authz.core.allowlist import Allowlist
from authz.core.decide import find_permitted, judge, read_asked
from authz.core.model import Deny, Key, Reason, Request, Scope
from authz.core.parameters import Parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from authz.core.model import Decision

LLAMA = "registry.ollama.ai/library/llama3.1:latest"
KEY = Key(
    digest=bytes(32),
    id="k",
    name="n",
    owner="o",
    models=Allowlist((LLAMA,)),
    scopes=frozenset({Scope.INFERENCE, Scope.READ}),
    parameters=Parameters(),
    expires_at=None,
    disabled=False,
    revoked=False,
    version=1,
)
MANAGER = replace(KEY, scopes=frozenset(Scope))
ROOT = replace(MANAGER, models=Allowlist(("*",)))


def ask(
    body: object,
    path: str = "/api/chat",
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> Request:
    """Return a request; a body that is no bytes becomes JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request(method, path, headers or {}, raw)


def decide(request: Request, key: Key) -> Decision:
    """The steps of Authorizer.authorize, without the look-up."""
    endpoint = find_permitted(request, key)
    if isinstance(endpoint, Deny):
        return endpoint
    asked = read_asked(endpoint, request)
    return asked if isinstance(asked, Deny) else judge(endpoint, asked, key)


def verdict(request: Request, key: Key = KEY) -> Reason | str | None:
    """Return why the request is denied, or the model that it is allowed for."""
    decision = decide(request, key)
    return decision.reason if isinstance(decision, Deny) else decision.model
