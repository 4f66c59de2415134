"""Verdicts of the pure core on whole requests: bodies, models, keys."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.decide import usable
from authz.core.model import CODES, Allow, Deny, Reason
from tests.verdicts import KEY, LLAMA, ROOT, ask, decide, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_every_reason_has_a_code() -> None:
    assert set(CODES) == set(Reason)


def test_an_allowed_model_passes_with_its_canonical_name() -> None:
    assert decide(ask({"model": "Llama3.1"}), KEY) == Allow(KEY, "/api/chat", LLAMA)


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
        b'{"model":"llama3.1","x":1e999}',
        b'{"model":"llama3.1","x":-1e999}',
        b'{"model":"llama3.1","x":' + b"1" * 101 + b"}",
        b'{"model":"llama3.1","x":-' + b"1" * 10_000_000 + b"}",
        b'{"model":"llama3.1","x":' + b"1" * 10_000_000 + b".0}",
        b'{"model":"llama3.1","x":{"\\ud800":1}}',
        b'{"model":"llama3.1","x":[{"y":{"a\\udfff":1}}]}',
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
    assert verdict(ask(body), ROOT) is Reason.BODY_NOT_STRICT_JSON


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"llama3.1","x":"\\ud800 \\udfff\\ud800"}',
        b'{"model":"llama3.1","x":{"\\ud83d\\ude00":[1e308,-0,1.5,true,null]}}',
        b'{"model":"llama3.1","x":' + b"1" * 100 + b"}",
        b'\n\t {"model":"llama3.1"} \r\n',
        '{"model":"llama3.1","x":"\u00e9\u4f60\U0001f600"}'.encode(),
    ],
)
def test_what_real_clients_send_is_read(body: bytes) -> None:
    assert verdict(ask(body)) == LLAMA


@pytest.mark.parametrize("part", [b"[],", b"[{}],", b'{"a":1},', b'"ab",', b"1,"])
def test_a_body_of_too_many_parts_is_refused_unread(part: bytes) -> None:
    body = b'{"model":"llama3.1","x":[' + part * 500_000 + b"0]}"
    assert verdict(ask(body), ROOT) is Reason.BODY_TOO_COMPLEX


def _nested(start: bytes, end: bytes, depth: int) -> bytes:
    inner = start * (depth - 1) + b"0" + end * (depth - 1)
    return b'{"model":"llama3.1","x":' + inner + b',"y":[[],[]]}'


@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_a_body_may_be_two_hundred_deep_and_no_deeper(start: bytes, end: bytes) -> None:
    assert verdict(ask(_nested(start, end, 200))) == LLAMA
    for depth in (201, 900, 5_000, 100_000):
        body = _nested(start, end, depth)
        assert verdict(ask(body), ROOT) is Reason.BODY_TOO_COMPLEX


def test_brackets_in_texts_make_nothing_deep() -> None:
    assert verdict(ask({"model": "llama3.1", "x": "[{" * 100_000})) == LLAMA


@pytest.mark.parametrize("start", [b"[", b'{"x":', b'{"model":"m","x":['])
def test_a_depth_that_never_ends_is_refused(start: bytes) -> None:
    assert verdict(ask(start * 100_000), ROOT) is Reason.BODY_TOO_COMPLEX


@pytest.mark.parametrize(
    "field", ["Model", "MODEL", "\u017ftream", "model ", "model\0", "mod\u00e9l", ""]
)
def test_a_field_that_could_fold_into_another_is_refused(field: str) -> None:
    body = {"model": "llama3.1", field: "qwen3"}
    assert verdict(ask(body), ROOT) is Reason.BODY_ODD_FIELD


@pytest.mark.parametrize("model", [None, "", 1, True, ["llama3.1"], {"a": "b"}])
def test_a_model_that_is_no_text_is_missing(model: object) -> None:
    assert verdict(ask({"model": model}), ROOT) is Reason.MODEL_MISSING


@pytest.mark.parametrize("model", ["\ud800", "llama3.1\udfff", "llama\ud83d3.1"])
def test_a_name_with_half_a_character_is_ungrammatical(model: str) -> None:
    assert verdict(ask({"model": model}), ROOT) is Reason.MODEL_UNGRAMMATICAL


@pytest.mark.parametrize("model", ["m:cloud", "m:8b-cloud", "m:local"])
def test_no_key_may_say_where_a_model_runs(model: str) -> None:
    assert verdict(ask({"model": model}), ROOT) is Reason.MODEL_REMOTE


def test_show_takes_the_older_field_name_too() -> None:
    assert verdict(ask({"name": "llama3.1"}, "/api/show")) == LLAMA
    assert verdict(ask({"model": "", "name": "llama3.1"}, "/api/show")) == LLAMA


def test_two_fields_must_name_one_model() -> None:
    body = {"model": "llama3.1", "name": "qwen3"}
    assert verdict(ask(body, "/api/show"), ROOT) is Reason.MODEL_AMBIGUOUS
    body = {"model": "llama3.1", "name": "Llama3.1:latest"}
    assert verdict(ask(body, "/api/show")) == LLAMA


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
    assert verdict(ask(body, headers=headers), ROOT) is reason


def test_the_encodings_that_change_nothing_pass() -> None:
    headers = {"content-encoding": "identity", "content-type": "text/plain"}
    headers |= {"content-length": "20", "x-envoy-auth-partial-body": "false"}
    assert verdict(ask(b'{"model":"llama3.1"}', headers=headers)) == LLAMA


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
    decide(ask(body), ROOT)
