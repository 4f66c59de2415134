"""For any input: what we authorise is what Ollama acts on, or we refuse.

The other side is a model of Ollama's readers, checked by test_go_reader.py.
"""

from __future__ import annotations

import base64
import re
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from authz.core.allowlist import Allowlist, canonical_pattern
from authz.core.body import decode_strictly, read_body
from authz.core.credential import Credential, Peppers, read_credential
from authz.core.decide import read_asked
from authz.core.endpoints import ENDPOINTS, Endpoint, find_endpoint
from authz.core.model import Asked, Deny, Reason, Request
from authz.core.names import canonical
from tests import bodies, go_names
from tests.go_json import GoError
from tests.go_reader import Kind, read_passthrough_model, read_struct

if TYPE_CHECKING:
    from collections.abc import Iterable

LLAMA = "registry.ollama.ai/library/llama3.1:latest"
CHAT = ENDPOINTS["/api/chat"]
NAMED = [endpoint for endpoint in ENDPOINTS.values() if endpoint.model_fields]
SWITCHED = [endpoint for endpoint in ENDPOINTS.values() if endpoint.switches]

_NAME_PIECES = ["m", "a.b", "_M-1", "h:80", "8" * 80, "8" * 81, "", ".", "@"]
_NAME_MARKS = ["/", "/", ":", ":", "://", ":cloud", ":LOCAL", "-cloud", " ", "\u3000"]
_PART = st.text("ab", min_size=1, max_size=6)
_WILD_PART = st.text("ab*", min_size=1, max_size=6)

_NEARLY_GOOD = st.builds(
    "{}{}{}{}".format,
    st.sampled_from([""] * 6 + ["x://h/n/", " ", "/", "\x1f", "a/"]),
    st.sampled_from(["", "", "n-1/", "hf.co/n/", "h:80/_N/", "h./n/", "a.b/"]),
    st.sampled_from(["llama3.1", "M-cloud", "8" * 80, "_m..", "8" * 81, "-m"]),
    st.sampled_from(["", ":8b", ":T_.-", ":x-local", ":8b-Cloud", ":LOCAL", ":", " "]),
)

names = st.sampled_from(
    [_NEARLY_GOOD] * 6
    + [st.lists(st.sampled_from(_NAME_PIECES + _NAME_MARKS), max_size=9).map("".join)]
    + [st.text("aA1_.-:/ctloud \n\u00a0\x1f\u212a", max_size=30)]
    + [st.text(st.characters(), max_size=10)]
).flatmap(lambda kind: kind)
canonical_names = st.builds("{}/{}/{}:{}".format, _PART, _PART, _PART, _PART)
canonical_patterns = st.just("*") | st.builds(
    "{}/{}/{}:{}".format, _WILD_PART, _WILD_PART, _WILD_PART, _WILD_PART
)
headers = st.dictionaries(
    st.sampled_from(["authorization", "x-api-key", "content-type"])
    | st.sampled_from(["content-encoding", "content-length"])
    | st.text(),
    st.sampled_from(["bearer nz_", "identity", "0", "-1", "multipart/"]) | st.text(),
)
requests = st.builds(
    Request,
    method=st.sampled_from(["GET", "POST", "DELETE"]) | st.text(),
    path=st.sampled_from(list(ENDPOINTS)) | st.text(),
    headers=headers,
    body=bodies.anything,
    headers_only=st.booleans(),
)


def ask(endpoint: Endpoint, body: bytes) -> Asked | Deny:
    return read_asked(endpoint, Request(endpoint.methods[0], endpoint.path, {}, body))


def read_by_ollama(name: str) -> tuple[str, str]:
    """Return where the model runs and its canonical name."""
    source, base = go_names.source_and_base(name)
    return source, go_names.canonical(base)


def acted_on(endpoint: Endpoint, body: bytes) -> set[tuple[str, str]]:
    """Return every model that one of Ollama's readers finds in the body."""
    further = (*endpoint.further_fields, *endpoint.optional_fields)
    names_of = (*endpoint.model_fields, *further)
    fields = read_struct(body, dict.fromkeys(names_of, Kind.TEXT))
    found = {str(name) for name in fields.values() if name}
    if endpoint.path.startswith("/v1/"):
        passed = read_passthrough_model(body)
        found |= set() if passed is None else {passed}
    return {read_by_ollama(name) for name in found}


@given(bodies.anything)
@example(b'{"model":"llama3.1","Model":"evil"}')
@example(b'{"model":"llama3.1"}{"model":"evil"}')
@example(b'{"model":"llama3.1","model":null}')
@example(b'{"model":"llama3.1","x":NaN}')
@example('{"source":"m","destination":"n","\u017fource":"evil"}'.encode())
@example(b'{"model":"llama3.1:cloud"}')
def test_a_body_that_passes_names_one_model_to_every_reader(body: bytes) -> None:
    for endpoint in NAMED:
        asked = ask(endpoint, body)
        if isinstance(asked, Asked):
            assert acted_on(endpoint, body) == {("", m) for m in asked.models}


@given(bodies.anything)
@example(rb'{"a":"\\u4e2d\\\u00e9\ud83d","\u0061b":"\u00ff\u0100"}')
@example(b'{"a":"\\\x7f41","b":"\\u4e2d"}')
@example(rb'{"a":"\u4e2d","\\u4e2d":1,"\u4e2d":2}')
@example('{"\u4e2d":1,"a":"\\u4e2d","\\u4e2d":2}'.encode())
def test_the_compact_reading_of_a_body_is_the_exact_one_in_all_that_is_ascii(
    body: bytes,
) -> None:
    try:
        exact = decode_strictly(body)
    except (ValueError, RecursionError):
        exact = None
    read = read_body(Request("POST", "/", {}, body))
    if isinstance(read, Deny):
        odd = read.reason in {Reason.BODY_ODD_FIELD, Reason.BODY_TOO_COMPLEX}
        assert odd or not isinstance(exact, dict)
    else:
        assert ascii_of(read) == ascii_of(exact)


def ascii_of(value: object) -> object:
    """Put a mark in place of every text that has more than plain ASCII."""
    if isinstance(value, dict):
        pairs = (map(ascii_of, pair) for pair in value.items())
        return sorted(map(str, map(list, pairs)))
    if isinstance(value, list):
        return [ascii_of(inner) for inner in value]
    if isinstance(value, str) and re.search(r"[^\0-~]|\\", value):
        return "more"
    return value


SWITCHES = {
    "insecure": Kind.FLAG,
    "remote_host": Kind.TEXT,
    "_debug_render_only": Kind.FLAG,
}


@given(bodies.with_switches)
@example(b'{"model":"llama3.1","Insecure":true}')
@example(b'{"model":"llama3.1","insecure":true,"insecure":null}')
def test_a_switch_that_ollama_would_turn_is_seen(body: bytes) -> None:
    for endpoint in SWITCHED:
        asked = ask(endpoint, body)
        if isinstance(asked, Asked) and not asked.switched:
            assert not any(read_switches(endpoint, body).values())


def read_switches(endpoint: Endpoint, body: bytes) -> dict[str, object]:
    kinds = {name: SWITCHES[name] for name in endpoint.switches}
    try:
        return read_struct(body, kinds)
    except GoError:
        return {}  # Ollama refuses the body


@given(bodies.plain)
def test_a_body_that_a_json_library_wrote_passes(body: bytes) -> None:
    asked = Asked((LLAMA,), amounts={"text_bytes": len(body), "load": 1})
    assert ask(CHAT, body) == asked


@given(names)
@example("llama3.1:8b-Cloud")
@example("\x1fllama3.1")
def test_a_name_that_passes_is_what_ollama_makes_of_it(name: str) -> None:
    form = canonical(name)
    if isinstance(form, str):
        assert read_by_ollama(name) == ("", form)
        assert canonical(form) == form


@given(names)
def test_a_path_that_passes_names_the_model_of_its_last_segment(name: str) -> None:
    request = Request("GET", f"/v1/models/{name}", {}, b"")
    endpoint = find_endpoint(request.method, request.path)
    asked = endpoint if isinstance(endpoint, Deny) else read_asked(endpoint, request)
    if isinstance(asked, Asked):
        assert ("", asked.model) == read_by_ollama(name)


@given(names)
@example("my-cloud:8b-local")
def test_a_name_is_refused_only_where_it_is_odd(name: str) -> None:
    """Odd is what Ollama refuses, or takes with a source, a scheme or outer space."""
    if isinstance(canonical(name), Reason) and "://" not in name:
        assert name != go_names.trimmed(name) or not ordinary(name)


def ordinary(name: str) -> bool:
    try:
        return read_by_ollama(name)[0] == ""
    except go_names.BadName:
        return False


@given(st.lists(canonical_patterns, max_size=4).map(tuple), canonical_names)
def test_an_allowlist_allows_what_its_patterns_match(
    patterns: tuple[str, ...], name: str
) -> None:
    assert Allowlist(patterns).allows(name) == any(
        pattern == "*" or match_naively(parts(pattern), parts(name))
        for pattern in patterns
    )


def parts(name: str) -> list[str]:
    return re.split("[/:]", name)


def match_naively(patterns: Iterable[str], texts: Iterable[str]) -> bool:
    return all(
        re.fullmatch(pattern.replace("*", "[ab]*"), text)
        for pattern, text in zip(patterns, texts, strict=True)
    )


@given(names)
def test_a_name_is_the_pattern_of_itself(name: str) -> None:
    form = canonical(name)
    if "*" not in name:
        assert canonical_pattern(name) == (form if isinstance(form, str) else None)


@given(st.text("aA*_.-:/cloud", max_size=30) | st.text())
def test_a_canonical_pattern_is_its_own(text: str) -> None:
    pattern = canonical_pattern(text)
    if pattern is not None:
        assert canonical_pattern(pattern) == pattern


@given(requests)
def test_no_request_makes_the_core_raise(request: Request) -> None:
    endpoint = find_endpoint(request.method, request.path)
    if isinstance(endpoint, Endpoint):
        assert isinstance(read_asked(endpoint, request), Asked | Deny)
    assert isinstance(read_credential(request.headers, Peppers()), Credential | Deny)


MIB = 2**20


def images(picture: bytes) -> bytes:
    text = b'"%b"' % base64.b64encode(picture)
    several = b",".join([text] * (MIB // len(text)))
    return b'{"model":"m","messages":[{"images":[%b]}]}' % several


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * MIB, id="arrays that never end"),
        pytest.param(b'{"a":' * (MIB // 5), id="objects that never end"),
        pytest.param(b'{"a":' + b"[]," * (MIB // 3), id="many empty arrays"),
        pytest.param(b'{"a":1' + b',"a":1' * (MIB // 6) + b"}", id="one key often"),
        pytest.param(b" " * MIB + b"x", id="nothing but space"),
        pytest.param(b'{"a":"' + b"\\" * MIB, id="backslashes"),
        pytest.param(b'{"a":"' + b"\\ud800" * (MIB // 6) + b'"}', id="surrogates"),
        pytest.param(b'{"a":' + b"9" * MIB + b"}", id="one huge integer"),
        pytest.param(b'{"a":0.' + b"9" * MIB + b"}", id="one long fraction"),
        pytest.param(b'{"a":[' + (b"9" * 4300 + b",") * 243 + b"0]}", id="integers"),
        pytest.param(b'{"model":"' + b"a/" * (MIB // 2) + b'"}', id="a long name"),
        pytest.param(b"\xf0\x9f\x98" * (MIB // 3), id="broken characters"),
        pytest.param(images(b"\xff\xd8\xff" + b"\xff" * 1000), id="pictures: fill"),
        pytest.param(images(b"\xff\xd8" + b"\xff\xe1\0\2" * 250), id="pictures: cut"),
        pytest.param(images(b"\xff\xd8\xff"), id="pictures: many"),
    ],
)
def test_a_hostile_mebibyte_is_read_in_time(body: bytes) -> None:
    start = time.process_time()  # our work, however busy the machine is
    assert isinstance(ask(CHAT, body), Asked | Deny)
    assert time.process_time() - start < 2  # 0.3 s is what the slowest takes alone


def test_many_stars_are_matched_in_time() -> None:
    pattern = f"h/n/{'*a' * 40}:t"
    start = time.process_time()
    assert not Allowlist((pattern,) * 1000).allows(f"h/n/{'a' * 79}b:t")
    assert time.process_time() - start < 5
