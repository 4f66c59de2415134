"""Decide. Pure: what is asked for against what a key may do; never raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authz.core.amounts import OddValueError, read_amounts
from authz.core.body import read_body, read_models, refused_framing
from authz.core.endpoints import find_endpoint
from authz.core.metering import input_estimate
from authz.core.model import Allow, Asked, Deny, Reason, Scope
from authz.core.names import DEFAULT_HOST, canonical

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
    return endpoint


def read_asked(endpoint: Endpoint, request: Request) -> Asked | Deny:
    """Read what is asked for. The one step that takes time with the body's size."""
    if endpoint.model_fields:
        return _asked_in_body(endpoint, request)
    if endpoint.takes_bytes and request.method == "POST":
        refused = refused_framing(request)
        return Deny(refused) if refused else Asked(unnamed=True)
    if request.body:
        return Deny(Reason.BODY_UNEXPECTED)
    if endpoint.takes_bytes:
        return Asked(unnamed=True)
    return _asked_in_path(request.path) if endpoint.model_in_path else Asked()


def judge(endpoint: Endpoint, asked: Asked, key: Key) -> Decision:
    """Return the verdict on what is asked for."""
    for name in asked.models:
        if not key.models.allows(name):
            return Deny(Reason.MODEL_NOT_LISTED)
    if asked.unnamed and not key.models.everything:
        return Deny(Reason.MODEL_UNNAMED)
    if endpoint.scope is Scope.MANAGE and not all(map(_is_ollamas, asked.models)):
        return Deny(Reason.MODEL_ELSEWHERE)
    if asked.switched:
        return Deny(Reason.PARAMETER_SWITCH)
    model = asked.model
    beyond = key.parameters.first_beyond(asked.amounts, model)
    if beyond is not None:
        return Deny(Reason.PARAMETER_BEYOND, parameter=beyond)
    estimated = input_estimate(asked.amounts)
    return Allow(key, endpoint.path, model, input_estimate=estimated)


def _asked_in_body(endpoint: Endpoint, request: Request) -> Asked | Deny:
    body = read_body(request)
    if isinstance(body, Deny):
        return body
    models = read_models(endpoint, body)
    if isinstance(models, Deny):
        return models
    try:
        amounts = read_amounts(endpoint.path, body, len(request.body))
    except OddValueError as error:
        return Deny(Reason.PARAMETER_ODD, parameter=str(error))
    # Clients send the value of an unset switch too.
    switched = any(map(body.get, endpoint.switches))
    unnamed = any(map(body.get, endpoint.unnamed_fields))
    return Asked(models, switched, unnamed, amounts)


def _asked_in_path(path: str) -> Asked | Deny:
    name = canonical(path.rpartition("/")[2])
    return Deny(name) if isinstance(name, Reason) else Asked((name,))


def _is_ollamas(name: str) -> bool:
    """Tell whether Ollama's own registry is where a name is pulled or pushed.

    Any other host in a name is one that the server would be made to call.
    """
    return name.startswith(f"{DEFAULT_HOST}/")
