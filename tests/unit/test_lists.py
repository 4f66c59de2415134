"""A list is cut down to what is allowed; what cannot be read is not shown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.allowlist import Allowlist, canonical_pattern
from authz.core.endpoints import ENDPOINTS
from authz.core.lists import LISTS, cut_list

EVERYTHING = Allowlist(("*",))


def allowing(*patterns: str) -> Allowlist:
    return Allowlist(tuple(canonical_pattern(pattern) or "" for pattern in patterns))


def tags(*entries: object) -> bytes:
    return json.dumps({"models": entries}).encode()


def shown(*entries: object, allowed: Allowlist = EVERYTHING) -> list[object]:
    cut = cut_list("/api/tags", tags(*entries), allowed.allows)
    assert cut is not None
    return list(json.loads(cut)["models"])


def test_every_endpoint_that_lists_models_can_be_cut() -> None:
    lists = {path for path, endpoint in ENDPOINTS.items() if endpoint.lists_models}
    assert lists <= LISTS


DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "8.0B",
    "quantization_level": "Q4_K_M",
    "context_length": 131072,
    "embedding_length": 4096,
}
NAMED = {"name": "m", "model": "m"}
BLOB = {"size": 4661224676, "digest": "f" * 64, "details": DETAILS}
INSTALLED = BLOB | {"modified_at": "2026-11-01T10:00:00Z", "capabilities": ["tools"]}
LOADED = BLOB | {"expires_at": "é", "size_vram": 0, "context_length": 4096}
MODEL = {"id": "m", "object": "model", "created": 1762000000, "owned_by": "library"}
WHOLE = {
    "/api/tags": {"models": [NAMED | INSTALLED]},
    "/api/ps": {"models": [NAMED | LOADED]},
    "/v1/models": {"object": "list", "data": [MODEL]},
    "/v1/models/:model": MODEL,
}


def with_more(value: object, more: dict[str, object]) -> object:
    """Return an answer that has more members in each of its objects."""
    if isinstance(value, list):
        return [with_more(item, more) for item in value]
    if isinstance(value, dict):
        return {k: with_more(v, more) for k, v in value.items()} | more
    return value


def cut(endpoint: str, answer: object, allowed: Allowlist) -> object:
    body = cut_list(endpoint, json.dumps(answer).encode(), allowed.allows)
    return None if body is None else json.loads(body)


@pytest.mark.parametrize("endpoint", LISTS)
def test_what_clients_know_of_an_allowed_model_stays(endpoint: str) -> None:
    assert cut(endpoint, WHOLE[endpoint], allowing("m")) == WHOLE[endpoint]


@pytest.mark.parametrize("endpoint", LISTS)
@pytest.mark.parametrize("allowed", [EVERYTHING, allowing("m")])
def test_what_is_not_known_is_not_shown(endpoint: str, allowed: Allowlist) -> None:
    more: dict[str, object] = {
        "remote_model": "n",
        "remote_host": "http://n",
        "source": ["n"],
        "n": {},
    }
    answer = with_more(WHOLE[endpoint], more)
    assert cut(endpoint, answer, allowed) == WHOLE[endpoint]


@pytest.mark.parametrize("value", [{"n": "n"}, [{"n": "n"}], [["n"]], [1]])
@pytest.mark.parametrize("member", ["digest", "capabilities"])
def test_what_is_known_has_no_room_for_the_unknown(member: str, value: object) -> None:
    assert shown(NAMED | {member: value}) == [NAMED]


@pytest.mark.parametrize("value", [None, "n", ["n"], [DETAILS]])
def test_details_of_another_form_are_not_shown(value: object) -> None:
    assert shown(NAMED | {"details": value}) == [NAMED]


@pytest.mark.parametrize("parent", ["m", "M:latest", "library/m"])
def test_a_parent_that_the_key_may_use_is_shown(parent: str) -> None:
    entry = NAMED | {"details": {"parent_model": parent}}
    assert shown(entry, allowed=allowing("m")) == [entry]


@pytest.mark.parametrize("parent", ["n", "m:cloud", "/root/m", "", None, ["m"], {}])
def test_any_other_parent_is_as_none(parent: object) -> None:
    entry = NAMED | {"details": {"parent_model": parent}}
    orphan = NAMED | {"details": {"parent_model": ""}}
    assert shown(entry, allowed=allowing("m")) == [orphan]


@pytest.mark.parametrize(
    ("endpoint", "entries"), [("/api/ps", "models"), ("/v1/models", "data")]
)
def test_no_models_look_like_none_that_are_allowed(endpoint: str, entries: str) -> None:
    none = cut(endpoint, {entries: None}, EVERYTHING)
    assert none == cut(endpoint, WHOLE[endpoint], allowing("n"))
    assert none == cut(endpoint, {entries: []}, EVERYTHING)


def test_who_is_asked_may_break_off() -> None:
    def allows(_name: str) -> bool:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        cut_list("/api/tags", tags(NAMED), allows)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("LLAMA3.1", "llama3.1"),
        ("llama3.1:latest", "llama3.1"),
        ("registry.ollama.ai/library/llama3.1:latest", "llama3.1"),
        ("hf.co/a/b:c", "hf.co/a/*:*"),
    ],
)
def test_names_are_compared_as_in_requests(name: str, pattern: str) -> None:
    entry = {"name": name, "model": name}
    assert shown(entry, allowed=allowing(pattern)) == [entry]
    assert shown(entry, allowed=allowing("other")) == []


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "m"},
        {"model": "m"},
        {"name": "m", "model": "n"},
        {"name": "m", "model": "m:latest"},
        {"name": "m", "model": None},
        {"name": ["m"], "model": ["m"]},
        {"name": "", "model": ""},
        {"name": "m:cloud", "model": "m:cloud"},
        {"name": "http://m", "model": "http://m"},
        {"Name": "m", "Model": "m"},
        {},
        "m",
        None,
    ],
)
def test_an_entry_without_one_clear_name_is_shown_to_nobody(entry: object) -> None:
    assert shown(entry) == []


def test_no_patterns_show_nothing() -> None:
    assert shown(NAMED, allowed=Allowlist(())) == []


UNREADABLE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"{}",
    b'{"Models":[]}',
    b'{"models":{}}',
    b'{"models":[]}{}',
    b'{"models":[],"models":[]}',
    b'{"models":[{"name":"m","name":"n","model":"m"}]}',
    b'{"models":[],"a":NaN}',
    b'{"models":[],"a":1e999}',
    b'{"models":[{"name":"m","model":"m","digest":"\\ud800"}]}',
    b'{"models":[],"a":"\xff"}',
    b'\xef\xbb\xbf{"models":[]}',
    b'{"models":[],"a":' + b"9" * 5000 + b"}",
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", UNREADABLE, ids=range(len(UNREADABLE)))
def test_an_answer_in_doubt_is_unreadable(body: bytes) -> None:
    assert cut_list("/api/tags", body, EVERYTHING.allows) is None


def test_another_model_than_an_allowed_one_is_unreadable() -> None:
    assert cut("/v1/models/:model", MODEL, allowing("n")) is None


@pytest.mark.parametrize("endpoint", ["", "/api/show", "/api/tags/"])
def test_other_answers_are_not_lists(endpoint: str) -> None:
    assert cut_list(endpoint, tags(), EVERYTHING.allows) is None


@given(st.binary() | st.text().map(str.encode), st.sampled_from(sorted(LISTS)))
def test_no_answer_raises(body: bytes, endpoint: str) -> None:
    cut_list(endpoint, body, EVERYTHING.allows)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["name", "model", "x"]), inner)
    ),
    max_leaves=10,
)


@given(st.lists(JSON | st.just(NAMED)))
def test_only_what_was_there_is_shown_in_its_order(entries: list[object]) -> None:
    assert shown(*entries, allowed=allowing("m")) == [
        NAMED
        for entry in entries
        if isinstance(entry, dict) and entry.get("name") == entry.get("model") == "m"
    ]
