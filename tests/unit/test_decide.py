"""Verdicts of the pure core on whole requests."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.allowlist import Allowlist
from authz.core.decide import find_permitted, judge, read_asked, usable
from authz.core.endpoints import ENDPOINTS
from authz.core.model import CODES, Allow, Deny, Key, Reason, Request, Scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from authz.core.model import Decision

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LLAMA = "registry.ollama.ai/library/llama3.1:latest"
KEY = Key(
    id="k",
    name="n",
    owner="o",
    models=Allowlist((LLAMA,)),
    scopes=frozenset({Scope.INFERENCE, Scope.READ}),
    expires_at=None,
    disabled=False,
    revoked=False,
    version=1,
)
ROOT = replace(KEY, models=Allowlist(("*",)), scopes=frozenset(Scope))


def post(
    body: bytes | object,
    path: str = "/api/chat",
    headers: Mapping[str, str] | None = None,
) -> Request:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request("POST", path, headers or {}, raw)


def decide(request: Request, key: Key) -> Decision:
    """The steps of Authorizer.authorize, without the look-up."""
    endpoint = find_permitted(request, key)
    if isinstance(endpoint, Deny):
        return endpoint
    asked = read_asked(endpoint, request)
    return asked if isinstance(asked, Deny) else judge(endpoint, asked, key)


def verdict(request: Request, key: Key = KEY) -> Reason | str | None:
    decision = decide(request, key)
    return decision.reason if isinstance(decision, Deny) else decision.model


def test_every_reason_has_a_code() -> None:
    assert set(CODES) == set(Reason)


def test_an_allowed_model_passes_with_its_canonical_name() -> None:
    assert decide(post({"model": "Llama3.1"}), KEY) == Allow(KEY, "/api/chat", LLAMA)


@pytest.mark.parametrize("path", [p for p, e in ENDPOINTS.items() if e.model_fields])
def test_every_endpoint_with_a_model_refuses_another_model(path: str) -> None:
    assert verdict(post({"model": "llama3.1"}, path)) == LLAMA
    assert verdict(post({"model": "qwen3"}, path)) is Reason.MODEL_NOT_LISTED
    assert verdict(post({}, path)) is Reason.MODEL_MISSING


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"qwen3","model":"llama3.1"}',
        b'{"model":"llama3.1","model":"qwen3"}',
        b'{"model":"llama3.1","mod\\u0065l":"qwen3"}',
        b'{"model":"llama3.1","options":{"a":1},"options":{"b":2}}',
        b'{"model":"llama3.1","options":{"a":1,"a":2}}',
        b'{"model":"llama3.1","x":[{"a":1,"a":2}]}',
        b'{"model":"llama3.1"}{"model":"qwen3"}',
        b'{"model":"llama3.1"} x',
        b'{"model":"llama3.1"}\0',
        b'\xef\xbb\xbf{"model":"llama3.1"}',
        '{"model":"llama3.1"}'.encode("utf-16"),
        '{"model":"llama3.1"}'.encode("utf-32"),
        b'{"model":"llama3.1","x":"\xff"}',
        b'{"model":"llama3.1","x":NaN}',
        b'{"model":"llama3.1","x":-Infinity}',
        b'{"model":"llama3.1","x":01}',
        b'{"model":"llama3.1",}',
        b"{'model':'llama3.1'}",
        b'{"model":"llama3.1"',
        b'{"model":"llama3.1","x":"\n"}',
        b'{"model":"llama3.1","x":' + b"1" * 5000 + b"}",
        b'{"model":"llama3.1","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":' * 100_000,
        b"[" * 100_000,
        b"null",
        b'"llama3.1"',
        b'[{"model":"llama3.1"}]',
        b"",
        b" ",
        b"\0",
    ],
)
def test_a_body_that_two_readers_could_read_differently_is_refused(
    body: bytes,
) -> None:
    assert verdict(post(body), ROOT) is Reason.BODY_NOT_STRICT_JSON


@pytest.mark.parametrize("part", [b"[],", b"[{}],", b'{"a":1},'])
def test_a_body_of_too_many_parts_is_refused_unread(part: bytes) -> None:
    body = b'{"model":"llama3.1","x":[' + part * 500_000 + b"0]}"
    assert verdict(post(body), ROOT) is Reason.BODY_TOO_COMPLEX


@pytest.mark.parametrize(
    "field", ["Model", "MODEL", "\u017ftream", "model ", "model\0", "mod\u00e9l", ""]
)
def test_a_field_that_could_fold_into_another_is_refused(field: str) -> None:
    body = {"model": "llama3.1", field: "qwen3"}
    assert verdict(post(body), ROOT) is Reason.BODY_ODD_FIELD


@pytest.mark.parametrize("model", [None, "", 1, True, ["llama3.1"], {"a": "b"}])
def test_a_model_that_is_no_text_is_missing(model: object) -> None:
    assert verdict(post({"model": model}), ROOT) is Reason.MODEL_MISSING


@pytest.mark.parametrize("model", ["m:cloud", "m:8b-cloud", "m:local"])
def test_no_key_may_say_where_a_model_runs(model: str) -> None:
    assert verdict(post({"model": model}), ROOT) is Reason.MODEL_REMOTE


def test_show_takes_the_older_field_name_too() -> None:
    assert verdict(post({"name": "llama3.1"}, "/api/show")) == LLAMA
    assert verdict(post({"model": "", "name": "llama3.1"}, "/api/show")) == LLAMA


def test_two_fields_must_name_one_model() -> None:
    body = {"model": "llama3.1", "name": "qwen3"}
    assert verdict(post(body, "/api/show"), ROOT) is Reason.MODEL_AMBIGUOUS
    body = {"model": "llama3.1", "name": "Llama3.1:latest"}
    assert verdict(post(body, "/api/show")) == LLAMA


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"content-encoding": "zstd"}, Reason.ENCODING_ODD),
        ({"content-encoding": "identity,gzip"}, Reason.ENCODING_ODD),
        ({"content-type": "Multipart/form-data; boundary=x"}, Reason.MULTIPART),
        ({"content-length": "21"}, Reason.BODY_INCOMPLETE),
        ({"content-length": "20,20"}, Reason.BODY_INCOMPLETE),
        ({"x-envoy-auth-partial-body": "true"}, Reason.BODY_INCOMPLETE),
    ],
)
def test_a_body_in_another_form_or_in_part_is_refused(
    headers: Mapping[str, str], reason: Reason
) -> None:
    body = b'{"model":"llama3.1"}'
    assert verdict(post(body, headers=headers), ROOT) is reason


def test_the_encodings_that_change_nothing_pass() -> None:
    headers = {"content-encoding": "identity", "content-type": "text/plain"}
    headers |= {"content-length": "20", "x-envoy-auth-partial-body": "false"}
    assert verdict(post(b'{"model":"llama3.1"}', headers=headers)) == LLAMA


@pytest.mark.parametrize(
    "path",
    ["/api/chat?x", "/api/%63hat", "/api/chat;x", "/api/ch\u00e4t", "/api/chat ", ""],
)
def test_an_odd_path_is_refused_before_it_is_looked_up(path: str) -> None:
    assert verdict(post(b"", path), ROOT) is Reason.PATH_ODD


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/API/chat",
        "/api/chat/",
        "/v1/../api/chat",
        "/debug/pprof",
        "/healthz",
        "/api/me",
        "/api/signout",
        "/api/status",
        "/api/experimental/web_search",
    ],
)
def test_what_is_not_in_the_table_is_not_there(path: str) -> None:
    assert verdict(post(b"", path), ROOT) is Reason.PATH_UNKNOWN


def test_a_wrong_method_is_told_the_right_ones() -> None:
    request = Request("GET", "/api/chat", {}, b"")
    assert decide(request, KEY) == Deny(Reason.METHOD_UNKNOWN, ("POST",))
    request = Request("post", "/api/version", {}, b"")
    assert decide(request, KEY) == Deny(Reason.METHOD_UNKNOWN, ("GET", "HEAD"))


@pytest.mark.parametrize("path", [p for p, e in ENDPOINTS.items()])
def test_an_endpoint_outside_the_scopes_of_a_key_is_closed(path: str) -> None:
    endpoint = ENDPOINTS[path]
    others = frozenset(Scope) - {endpoint.scope}
    request = Request(endpoint.methods[0], path, {}, b'{"model":"llama3.1"}')
    assert verdict(request, replace(ROOT, scopes=others)) is Reason.SCOPE_MISSING


def test_blobs_are_for_managers() -> None:
    request = post(b"", "/api/blobs/sha256:" + "a" * 64)
    assert verdict(request) is Reason.SCOPE_MISSING


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/v1/models"])
def test_lists_of_all_models_are_for_keys_of_all_models(path: str) -> None:
    request = Request("GET", path, {}, b"")
    assert verdict(request, KEY) is Reason.LIST_NEEDS_ALL_MODELS
    assert verdict(request, ROOT) is None


def test_a_body_where_none_belongs_is_refused() -> None:
    request = Request("GET", "/api/version", {}, b"{}")
    assert verdict(request) is Reason.BODY_UNEXPECTED


def test_only_a_living_key_is_usable() -> None:
    assert usable(KEY, NOW) == KEY
    assert usable(None, NOW) == Deny(Reason.KEY_UNKNOWN)
    assert usable(replace(KEY, revoked=True), NOW) == Deny(Reason.KEY_REVOKED)
    assert usable(replace(KEY, disabled=True), NOW) == Deny(Reason.KEY_DISABLED)


def test_a_key_ends_at_the_moment_it_expires() -> None:
    key = replace(KEY, expires_at=NOW)
    assert usable(key, NOW) == Deny(Reason.KEY_EXPIRED)
    assert usable(key, NOW - timedelta(microseconds=1)) == key


@given(st.binary(max_size=200))
def test_no_body_makes_the_core_raise(body: bytes) -> None:
    decide(post(body), ROOT)


@given(st.text(max_size=50), st.text(max_size=50))
def test_no_method_or_path_makes_the_core_raise(method: str, path: str) -> None:
    assert isinstance(decide(Request(method, path, {}, b""), KEY), Deny)
