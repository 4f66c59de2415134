"""The words of the decision. Frozen values only; nothing here decides.

What is made for every request is a named tuple: to make a frozen dataclass takes two
to four times the instructions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from authz.core.limits import NONE as NO_LIMITS
from authz.core.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from authz.core.allowlist import Allowlist
    from authz.core.limits import Outcome
    from authz.core.parameters import Parameters


class Scope(Enum):
    """What kind of endpoint a key may use."""

    INFERENCE = "inference"
    READ = "read"
    MANAGE = "manage"


class Code(Enum):
    """What a client is told: (code, HTTP status, message)."""

    INVALID_REQUEST = ("invalid_request", 400, "The request is not valid.")
    UNAUTHORIZED = ("unauthorized", 401, "A valid API key is required.")
    ENDPOINT_NOT_ALLOWED = (
        "endpoint_not_allowed",
        403,
        "This key may not use this endpoint.",
    )
    MODEL_NOT_ALLOWED = ("model_not_allowed", 403, "This key may not use this model.")
    PARAMETER_NOT_ALLOWED = (
        "parameter_not_allowed",
        403,
        "A parameter of the request is not allowed for this key.",
    )
    NOT_FOUND = ("not_found", 404, "There is no such endpoint.")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, "The method is not allowed here.")
    UNSUPPORTED_ENCODING = (
        "unsupported_encoding",
        415,
        "The request must be plain JSON.",
    )
    RATE_LIMITED = ("rate_limited", 429, "Too many requests.")
    BUDGET_EXCEEDED = (
        "budget_exceeded",
        429,
        "The token budget of this key is used up.",
    )
    UNAVAILABLE = (
        "unavailable",
        503,
        "The service is temporarily unavailable.",
    )

    def __init__(self, code: str, status: int, message: str) -> None:
        self.code = code
        self.status = status
        self.message = message


class Reason(Enum):
    """Why a request was denied: for logs, never for clients."""

    CREDENTIAL_MISSING = "credential_missing"
    CREDENTIAL_MALFORMED = "credential_malformed"
    KEY_UNKNOWN = "key_unknown"
    KEY_REVOKED = "key_revoked"
    KEY_DISABLED = "key_disabled"
    KEY_EXPIRED = "key_expired"
    PATH_ODD = "path_odd"
    PATH_UNKNOWN = "path_unknown"
    METHOD_UNKNOWN = "method_unknown"
    SCOPE_MISSING = "scope_missing"
    ENCODING_ODD = "encoding_odd"
    MULTIPART = "multipart"
    BODY_INCOMPLETE = "body_incomplete"
    BODY_UNEXPECTED = "body_unexpected"
    BODY_TOO_COMPLEX = "body_too_complex"
    BODY_NOT_STRICT_JSON = "body_not_strict_json"
    BODY_ODD_FIELD = "body_odd_field"
    MODEL_MISSING = "model_missing"
    MODEL_UNGRAMMATICAL = "model_ungrammatical"
    MODEL_AMBIGUOUS = "model_ambiguous"
    MODEL_REMOTE = "model_remote"
    MODEL_NOT_LISTED = "model_not_listed"
    MODEL_UNNAMED = "model_unnamed"
    MODEL_ELSEWHERE = "model_elsewhere"
    PARAMETER_SWITCH = "parameter_switch"
    PARAMETER_BEYOND = "parameter_beyond"
    PARAMETER_ODD = "parameter_odd"
    LIMIT_REQUESTS = "limit_requests"
    LIMIT_TOKENS = "limit_tokens"
    LIMIT_CONCURRENCY = "limit_concurrency"
    LIMIT_BUDGET = "limit_budget"
    UNDECIDED = "undecided"


CODES: Mapping[Reason, Code] = {
    Reason.CREDENTIAL_MISSING: Code.UNAUTHORIZED,
    Reason.CREDENTIAL_MALFORMED: Code.UNAUTHORIZED,
    Reason.KEY_UNKNOWN: Code.UNAUTHORIZED,
    Reason.KEY_REVOKED: Code.UNAUTHORIZED,
    Reason.KEY_DISABLED: Code.UNAUTHORIZED,
    Reason.KEY_EXPIRED: Code.UNAUTHORIZED,
    Reason.PATH_ODD: Code.INVALID_REQUEST,
    Reason.PATH_UNKNOWN: Code.NOT_FOUND,
    Reason.METHOD_UNKNOWN: Code.METHOD_NOT_ALLOWED,
    Reason.SCOPE_MISSING: Code.ENDPOINT_NOT_ALLOWED,
    Reason.ENCODING_ODD: Code.UNSUPPORTED_ENCODING,
    Reason.MULTIPART: Code.UNSUPPORTED_ENCODING,
    Reason.BODY_INCOMPLETE: Code.INVALID_REQUEST,
    Reason.BODY_UNEXPECTED: Code.INVALID_REQUEST,
    Reason.BODY_TOO_COMPLEX: Code.INVALID_REQUEST,
    Reason.BODY_NOT_STRICT_JSON: Code.INVALID_REQUEST,
    Reason.BODY_ODD_FIELD: Code.INVALID_REQUEST,
    Reason.MODEL_MISSING: Code.INVALID_REQUEST,
    Reason.MODEL_UNGRAMMATICAL: Code.INVALID_REQUEST,
    Reason.MODEL_AMBIGUOUS: Code.INVALID_REQUEST,
    Reason.MODEL_REMOTE: Code.MODEL_NOT_ALLOWED,
    Reason.MODEL_NOT_LISTED: Code.MODEL_NOT_ALLOWED,
    Reason.MODEL_UNNAMED: Code.MODEL_NOT_ALLOWED,
    Reason.MODEL_ELSEWHERE: Code.MODEL_NOT_ALLOWED,
    Reason.PARAMETER_SWITCH: Code.PARAMETER_NOT_ALLOWED,
    Reason.PARAMETER_BEYOND: Code.PARAMETER_NOT_ALLOWED,
    Reason.PARAMETER_ODD: Code.INVALID_REQUEST,
    Reason.LIMIT_REQUESTS: Code.RATE_LIMITED,
    Reason.LIMIT_TOKENS: Code.RATE_LIMITED,
    Reason.LIMIT_CONCURRENCY: Code.RATE_LIMITED,
    Reason.LIMIT_BUDGET: Code.BUDGET_EXCEEDED,
    Reason.UNDECIDED: Code.UNAVAILABLE,
}


class Request(NamedTuple):
    """One request as Envoy describes it; the path is normalised by Envoy.

    ``headers`` has lower-case names; what was sent twice is joined by a comma.
    ``body`` may be a view of the message that it came in.
    ``headers_only`` marks the Check that comes before the body is read.
    ``source`` is the client's address, empty where it has none.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | memoryview
    headers_only: bool = False
    source: str = ""

    def __repr__(self) -> str:
        """Show nothing that may be secret."""
        return f"Request({self.method!r}, {self.path!r}, source={self.source!r})"

    @property
    def id(self) -> str:
        """What Envoy calls the request, in its answer and its logs."""
        return self.headers.get("x-request-id", "")


@dataclass(frozen=True, slots=True)
class Key:
    """An identity as one of its secrets sees it; times are UTC.

    ``expires_at`` is the earlier of the key's and the secret's; ``version``
    grows with every change of either row; ``digest`` is the secret's.
    """

    digest: bytes = field(repr=False)
    id: str
    name: str
    owner: str
    models: Allowlist
    scopes: frozenset[Scope]
    parameters: Parameters
    expires_at: datetime | None
    disabled: bool
    revoked: bool
    version: int
    limits: Limits = NO_LIMITS


class Asked(NamedTuple):
    """What a request asks for.

    ``models`` are canonical; ``switched`` tells that a field is set which no key
    may set, ``unnamed`` that a model is also asked for by other than its name.
    ``amounts`` are what it asks of the machine, by the names in parameters.py.
    """

    models: tuple[str, ...] = ()
    switched: bool = False
    unnamed: bool = False
    amounts: Mapping[str, float] = MappingProxyType({})

    @property
    def model(self) -> str | None:
        """The model that the request is about, None where there is none."""
        return self.models[0] if self.models else None


class Allow(NamedTuple):
    """The request may pass; ``model`` is canonical, None where there is none.

    ``final`` is False after the headers-only Check: another one follows.
    ``input_estimate`` is in tokens, None where the bytes of the body tell it.
    ``limited`` tells where a key that has limits stands.
    """

    key: Key
    endpoint: str
    model: str | None
    final: bool = True
    input_estimate: int | None = None
    limited: Outcome | None = None


class Deny(NamedTuple):
    """The request may not pass.

    ``methods`` are the allowed ones of a 405; ``parameter`` names what was asked
    too much of; ``limited`` tells where a key stands that is beyond a limit.
    """

    reason: Reason
    methods: tuple[str, ...] = ()
    parameter: str | None = None
    limited: Outcome | None = None

    @property
    def code(self) -> Code:
        """What the client is told."""
        return CODES[self.reason]


Decision = Allow | Deny
