"""The table of routes: what is reached, by whom, and what stays closed."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.decide import find_permitted, read_asked
from authz.core.endpoints import CLOSED, ENDPOINTS, OTHER, Endpoint, route_of
from authz.core.model import Code, Deny, Reason, Request, Scope
from tests.compare_routes import differences, registered, table
from tests.verdicts import KEY, LLAMA, MANAGER, ROOT, ask, decide, verdict

BLOB = "/api/blobs/sha256:" + "a" * 64
FIELDS = [
    (endpoint, field)
    for endpoint in ENDPOINTS.values()
    for field in endpoint.model_fields
]
MANAGED = [
    ("/api/pull", "POST", {"model": "llama3.1"}),
    ("/api/push", "POST", {"model": "llama3.1"}),
    ("/api/create", "POST", {"model": "llama3.1", "from": "llama3.1"}),
    ("/api/copy", "POST", {"source": "llama3.1", "destination": "llama3.1"}),
    ("/api/delete", "DELETE", {"model": "llama3.1"}),
]


@pytest.mark.parametrize(("endpoint", "field"), FIELDS)
def test_every_field_that_names_a_model_is_checked(
    endpoint: Endpoint, field: str
) -> None:
    others = dict.fromkeys(endpoint.further_fields, "llama3.1")

    def answer(body: dict[str, str]) -> object:
        method = endpoint.methods[0]
        return verdict(ask(others | body, endpoint.path, method=method), MANAGER)

    assert answer({field: "llama3.1"}) == LLAMA
    assert answer({field: "qwen3"}) is Reason.MODEL_NOT_LISTED
    assert answer({}) is Reason.MODEL_MISSING


@pytest.mark.parametrize(("path", "method", "body"), MANAGED)
def test_each_name_of_a_manager_must_be_allowed(
    path: str, method: str, body: dict[str, str]
) -> None:
    assert verdict(ask(body, path, method=method), MANAGER) == LLAMA
    for field in body:
        asked = ask(body | {field: "qwen3"}, path, method=method)
        assert verdict(asked, MANAGER) is Reason.MODEL_NOT_LISTED
        assert verdict(asked, ROOT) in {LLAMA, LLAMA.replace("llama3.1", "qwen3")}


@pytest.mark.parametrize("destination", [{}, {"destination": ""}])
def test_a_copy_without_a_destination_is_refused(destination: dict[str, str]) -> None:
    asked = ask({"source": "llama3.1"} | destination, "/api/copy")
    assert verdict(asked, ROOT) is Reason.MODEL_MISSING


def test_a_model_may_be_created_from_no_other() -> None:
    assert verdict(ask({"model": "llama3.1"}, "/api/create"), MANAGER) == LLAMA


@pytest.mark.parametrize(
    "field", ["files", "adapters", "draft_files", "modelfile", "path"]
)
def test_only_a_key_for_any_model_builds_from_what_has_no_name(field: str) -> None:
    body = {"model": "llama3.1", field: {"a.gguf": "sha256:" + "a" * 64}}
    asked = ask(body, "/api/create")
    assert verdict(asked, MANAGER) is Reason.MODEL_UNNAMED
    assert verdict(asked, ROOT) == LLAMA
    asked = ask(body | {field: {}}, "/api/create")
    assert verdict(asked, MANAGER) == LLAMA


@pytest.mark.parametrize("host", ["hf.co", "10.0.0.1:80", "registry.ollama.ai:443"])
@pytest.mark.parametrize(("path", "method", "body"), MANAGED)
def test_no_manager_names_another_registry(
    path: str, method: str, body: dict[str, str], host: str
) -> None:
    for field in body:
        asked = ask(body | {field: f"{host}/a/b"}, path, method=method)
        decision = decide(asked, ROOT)
        assert decision == Deny(Reason.MODEL_ELSEWHERE)
        assert Deny(Reason.MODEL_ELSEWHERE).code is Code.MODEL_NOT_ALLOWED


@pytest.mark.parametrize("value", [True, 1, "http://10.0.0.1", [0], {"a": 1}])
@pytest.mark.parametrize("switch", ["insecure", "remote_host"])
@pytest.mark.parametrize(("path", "method", "body"), MANAGED)
def test_no_manager_sets_a_switch(
    path: str, method: str, body: dict[str, str], switch: str, value: object
) -> None:
    decision = decide(ask(body | {switch: value}, path, method=method), ROOT)
    assert decision == Deny(Reason.PARAMETER_SWITCH)
    assert Deny(Reason.PARAMETER_SWITCH).code is Code.PARAMETER_NOT_ALLOWED


@pytest.mark.parametrize(
    ("switch", "value"), [("insecure", False), ("insecure", None), ("remote_host", "")]
)
def test_a_client_may_send_a_switch_that_is_off(switch: str, value: object) -> None:
    body = {"model": "llama3.1", switch: value}
    assert verdict(ask(body, "/api/pull"), MANAGER) == LLAMA


def test_a_name_that_is_refused_comes_before_a_switch() -> None:
    body = {"model": "qwen3", "insecure": True}
    assert verdict(ask(body, "/api/pull"), MANAGER) is Reason.MODEL_NOT_LISTED


@pytest.mark.parametrize("source", ["", None, 1, ["llama3.1"]])
def test_a_source_that_is_no_text_is_refused(source: object) -> None:
    body = {"model": "llama3.1", "from": source}
    assert verdict(ask(body, "/api/create"), ROOT) is Reason.MODEL_MISSING


def test_a_source_that_runs_elsewhere_is_refused() -> None:
    body = {"model": "llama3.1", "from": "gpt-oss:120b-cloud"}
    assert verdict(ask(body, "/api/create"), ROOT) is Reason.MODEL_REMOTE


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3.1", LLAMA),
        ("LLAMA3.1:latest", LLAMA),
        ("qwen3", Reason.MODEL_NOT_LISTED),
        ("llama3.1:cloud", Reason.MODEL_REMOTE),
        ("llama3.1:", Reason.MODEL_UNGRAMMATICAL),
        ("ns/llama3.1", Reason.PATH_UNKNOWN),
        (":model", Reason.PATH_UNKNOWN),
        ("..", Reason.PATH_UNKNOWN),
        ("", Reason.PATH_UNKNOWN),
        ("llama3.1%3Alatest", Reason.PATH_ODD),
    ],
)
def test_a_model_in_the_path_is_checked(name: str, expected: object) -> None:
    assert verdict(ask(b"", f"/v1/models/{name}", method="GET")) == expected


def test_blobs_are_for_managers() -> None:
    assert verdict(ask(b"GGUF\xff", BLOB)) is Reason.SCOPE_MISSING
    assert verdict(ask(b"GGUF\xff", BLOB), ROOT) is None
    assert verdict(ask(b"", BLOB, method="HEAD"), ROOT) is None


def test_a_manager_of_some_models_learns_nothing_of_the_blobs_of_others() -> None:
    for request in (ask(b"GGUF\xff", BLOB), ask(b"", BLOB, method="HEAD")):
        assert verdict(request, MANAGER) is Reason.MODEL_UNNAMED


def test_a_blob_travels_whole_and_plain_or_not_at_all() -> None:
    cut = ask(b"GG", BLOB, {"x-envoy-auth-partial-body": "true"})
    assert verdict(cut, MANAGER) is Reason.BODY_INCOMPLETE
    packed = ask(b"GG", BLOB, {"content-encoding": "zstd"})
    assert verdict(packed, MANAGER) is Reason.ENCODING_ODD


@pytest.mark.parametrize(
    "digest", [":digest", "sha256:" + "a" * 63, "sha512:" + "a" * 64, "../x"]
)
def test_a_blob_has_a_digest(digest: str) -> None:
    assert verdict(ask(b"", f"/api/blobs/{digest}"), ROOT) is Reason.PATH_UNKNOWN


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/v1/models"])
def test_lists_are_for_every_reader_and_marked(path: str) -> None:
    assert verdict(ask(b"", path, method="GET")) is None
    assert ENDPOINTS[path].lists_models


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/api/version"), ("GET", "/v1/models/m"), ("HEAD", BLOB)],
)
def test_a_body_where_none_belongs_is_refused(method: str, path: str) -> None:
    request = ask({"model": "llama3.1"}, path, method=method)
    assert verdict(request, ROOT) is Reason.BODY_UNEXPECTED


@pytest.mark.parametrize(
    "path",
    ["/api/chat?x", "/api/%63hat", "/api/chat;x", "/api/ch\u00e4t", "/api/chat ", ""],
)
def test_an_odd_path_is_refused_before_it_is_looked_up(path: str) -> None:
    assert verdict(ask(b"", path), ROOT) is Reason.PATH_ODD


@pytest.mark.parametrize(
    "path",
    ["/API/chat", "/api/chat/", "/v1/../api/chat", "/debug/pprof", "/healthz", *CLOSED],
)
def test_what_is_not_in_the_table_is_not_there(path: str) -> None:
    assert verdict(ask(b"", path), ROOT) is Reason.PATH_UNKNOWN


def test_a_wrong_method_is_told_the_right_ones() -> None:
    asked = ask(b"", "/api/chat", method="GET")
    assert decide(asked, KEY) == Deny(Reason.METHOD_UNKNOWN, ("POST",))
    asked = ask(b"", "/api/version", method="post")
    assert decide(asked, KEY) == Deny(Reason.METHOD_UNKNOWN, ("GET", "HEAD"))


@pytest.mark.parametrize("path", [path for path in ENDPOINTS if ":" not in path])
def test_an_endpoint_outside_the_scopes_of_a_key_is_closed(path: str) -> None:
    endpoint = ENDPOINTS[path]
    others = frozenset(Scope) - {endpoint.scope}
    request = ask({"model": "llama3.1"}, path, method=endpoint.methods[0])
    assert verdict(request, replace(ROOT, scopes=others)) is Reason.SCOPE_MISSING


def test_what_a_body_asks_for_can_be_read_in_another_process() -> None:
    request = ask({"model": "llama3.1"})
    endpoint = pickle.loads(pickle.dumps(find_permitted(request, KEY)))  # noqa: S301 - our own bytes
    asked = read_asked(endpoint, request)
    assert pickle.loads(pickle.dumps(asked)) == asked  # noqa: S301 - our own bytes


@given(st.text(max_size=50), st.text(max_size=50))
def test_no_method_or_path_makes_the_core_raise(method: str, path: str) -> None:
    assert isinstance(decide(Request(method, path, {}, b""), KEY), Deny)


def test_a_tree_of_ollama_is_compared_with_the_table() -> None:
    source = """
    r.GET("/", root)
    r.HEAD("/", root)
    // r.POST("/api/old", s.Old)
    r.POST("/api/new", a(b), s.New)
    r.POST("/api/chat", s.wrapped("/api/chat", s.Chat)...)
    r.Any("/api/chat", s.Chat)
    r.Group("/v2")
    r.GET(
        "/api/lines", s.Lines)
    v.GET("/api/elsewhere", s.X)
    r.GET(prefix+"/api/computed", s.X)
    http.Handle("/", h)
    """
    ours = {path: table()[path] for path in ("/", "/api/chat", "/api/me")}
    assert list(differences(ours, registered(source))) == [
        "changed  POST -> Any,POST /api/chat",
        "new      GET /api/lines",
        "gone     POST /api/me",
        "new      POST /api/new",
        'new      ? r.GET(prefix+"/api/computed", s.X)',
        'new      ? r.Group("/v2")',
        'new      ? v.GET("/api/elsewhere", s.X)',
    ]


def test_what_streams_unless_told_otherwise_is_marked() -> None:
    marked = {path for path, endpoint in ENDPOINTS.items() if endpoint.streams}
    manage = {"/api/pull", "/api/push", "/api/create"}
    assert marked == {"/api/generate", "/api/chat"} | manage


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/api/chat", "/api/chat"),
        ("/v1/models/llama3.1:8b", "/v1/models/:model"),
        (f"/api/blobs/sha256:{'0' * 64}", "/api/blobs/:digest"),
        ("/api/blobs/sha256:0", OTHER),
        ("/v1/models/:model/x", OTHER),
        ("/anything", OTHER),
        ("", OTHER),
    ],
)
def test_a_path_is_counted_by_its_route(path: str, route: str) -> None:
    assert route_of(path) == route
