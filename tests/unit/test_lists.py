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
    cut = cut_list("/api/tags", tags(*entries), allowed)
    assert cut is not None
    return list(json.loads(cut)["models"])


def test_every_endpoint_that_lists_models_can_be_cut() -> None:
    lists = {path for path, endpoint in ENDPOINTS.items() if endpoint.lists_models}
    assert lists <= LISTS


def test_what_is_allowed_stays_as_it_was() -> None:
    body = '{"a":[1.5,"\\u2028é"],"models":[{"name":"m","model":"m","b":{}}],"z":null}'
    cut = cut_list("/api/tags", body.encode(), allowing("m"))
    assert cut is not None
    assert json.loads(cut) == json.loads(body)
    assert list(json.loads(cut)) == ["a", "models", "z"]


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
    assert shown({"name": "m", "model": "m"}, allowed=Allowlist(())) == []


UNREADABLE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"{}",
    b'{"models":null}',
    b'{"models":{}}',
    b'{"models":[]}{}',
    b'{"models":[],"models":[]}',
    b'{"models":[{"name":"m","name":"n","model":"m"}]}',
    b'{"models":[],"a":NaN}',
    b'{"models":[],"a":1e999}',
    b'{"models":[],"a":"\\ud800"}',
    b'{"models":[],"a":"\xff"}',
    b'\xef\xbb\xbf{"models":[]}',
    b'{"models":[],"a":' + b"9" * 5000 + b"}",
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", UNREADABLE, ids=range(len(UNREADABLE)))
def test_an_answer_in_doubt_is_unreadable(body: bytes) -> None:
    assert cut_list("/api/tags", body, EVERYTHING) is None


def test_one_model_is_shown_whole_or_not_at_all() -> None:
    body = b'{"id":"m:latest","object":"model"}'
    assert cut_list("/v1/models/:model", body, allowing("m")) == body
    assert cut_list("/v1/models/:model", body, allowing("n")) is None


@pytest.mark.parametrize("endpoint", ["", "/api/show", "/api/tags/"])
def test_other_answers_are_not_lists(endpoint: str) -> None:
    assert cut_list(endpoint, tags(), EVERYTHING) is None


@given(st.binary() | st.text().map(str.encode), st.sampled_from(sorted(LISTS)))
def test_no_answer_raises(body: bytes, endpoint: str) -> None:
    cut_list(endpoint, body, EVERYTHING)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["name", "model", "x"]), inner)
    ),
)


@given(st.lists(JSON | st.just({"name": "m", "model": "m"})))
def test_only_what_was_there_is_shown_in_its_order(entries: list[object]) -> None:
    assert shown(*entries, allowed=allowing("m")) == [
        entry
        for entry in entries
        if isinstance(entry, dict) and entry.get("name") == entry.get("model") == "m"
    ]
