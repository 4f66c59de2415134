"""Decide. Pure: what is asked for against what a key may do; never raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authz.core.body import read_body, read_model
from authz.core.endpoints import find_endpoint
from authz.core.model import Allow, Deny, Reason

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


def decide(request: Request, key: Key) -> Decision:
    """Return the verdict on a request of a usable key."""
    endpoint = _permitted_endpoint(request, key)
    if isinstance(endpoint, Deny):
        return endpoint
    if request.headers_only:
        return Allow(key, endpoint.path, model=None, final=False)
    if not endpoint.model_fields:
        return _without_body(request, key, endpoint)
    model = _permitted_model(request, key, endpoint)
    if isinstance(model, Deny):
        return model
    return Allow(key, endpoint.path, model)


def _permitted_endpoint(request: Request, key: Key) -> Endpoint | Deny:
    endpoint = find_endpoint(request.method, request.path)
    if isinstance(endpoint, Deny):
        return endpoint
    if endpoint.scope not in key.scopes:
        return Deny(Reason.SCOPE_MISSING)
    if endpoint.lists_models and not key.models.everything:
        return Deny(Reason.LIST_NEEDS_ALL_MODELS)
    return endpoint


def _without_body(request: Request, key: Key, endpoint: Endpoint) -> Decision:
    if request.body:
        return Deny(Reason.BODY_UNEXPECTED)
    return Allow(key, endpoint.path, model=None)


def _permitted_model(request: Request, key: Key, endpoint: Endpoint) -> str | Deny:
    body = read_body(request)
    if isinstance(body, Deny):
        return body
    model = read_model(endpoint, body)
    if isinstance(model, Deny) or key.models.allows(model):
        return model
    return Deny(Reason.MODEL_NOT_LISTED)
