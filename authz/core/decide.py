"""Decide. Pure: what is asked for against what a key may do; never raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authz.core.body import read_body, read_model
from authz.core.endpoints import find_endpoint
from authz.core.model import Allow, Asked, Deny, Reason

if TYPE_CHECKING:
    from datetime import datetime

    from authz.core.endpoints import Endpoint
    from authz.core.model import Decision, Key, Request


def usable(key: Key | None, now: datetime) -> Key | Deny:
    """Return the key if it is known and alive; clients see one 401 for the rest."""
    if key is None:
        return Deny(Reason.KEY_UNKNOWN)
    if key.revoked:
        return Deny(Reason.KEY_REVOKED)
    if key.disabled:
        return Deny(Reason.KEY_DISABLED)
    if key.expires_at is not None and key.expires_at <= now:
        return Deny(Reason.KEY_EXPIRED)
    return key


def find_permitted(request: Request, key: Key) -> Endpoint | Deny:
    """Return the endpoint that is asked for, if the key may use it."""
    endpoint = find_endpoint(request.method, request.path)
    if isinstance(endpoint, Deny):
        return endpoint
    if endpoint.scope not in key.scopes:
        return Deny(Reason.SCOPE_MISSING)
    if endpoint.lists_models and not key.models.everything:
        return Deny(Reason.LIST_NEEDS_ALL_MODELS)
    return endpoint


def read_asked(endpoint: Endpoint, request: Request) -> Asked | Deny:
    """Read what the body asks for. The one step that takes time with its size."""
    if not endpoint.model_fields:
        return Deny(Reason.BODY_UNEXPECTED) if request.body else Asked(model=None)
    body = read_body(request)
    if isinstance(body, Deny):
        return body
    model = read_model(endpoint, body)
    return model if isinstance(model, Deny) else Asked(model)


def judge(endpoint: Endpoint, asked: Asked, key: Key) -> Decision:
    """Return the verdict on what is asked for."""
    if asked.model is not None and not key.models.allows(asked.model):
        return Deny(Reason.MODEL_NOT_LISTED)
    return Allow(key, endpoint.path, asked.model)
