"""The grammar of RFC 8259, case by case: each is the value of a body's field.

What is JSON is read, what is not is refused; nothing raises.
"""

from __future__ import annotations

import pytest

from authz.core.body import decode_strictly
from tests.strict import assert_refused, read_value


@pytest.mark.parametrize(
    "source",
    b"0 -0 10 -12 0.5 -0.0 1.250 1e3 1E+3 0e0 0.0E-0 15e-1 1e-999 9007199254740993 "
    b"-9223372036854775808 123456789.0123456789".split(),
)
def test_numbers_are_read(source: bytes) -> None:
    assert read_value(source) == (
        int(source) if source[1:].isdigit() else float(source)
    )


@pytest.mark.parametrize(
    ("source", "value"), [(b"true", True), (b"false", False), (b"null", None)]
)
def test_the_three_words_are_read(source: bytes, value: object) -> None:
    assert read_value(source) is value


@pytest.mark.parametrize(
    "source",
    [
        *(
            rb"01 | -01 | 00 | +1 | - | --1 | - 1 | .5 | -.5 | 1. | 1.e1 | 1e | "
            rb"1e+ | 1e1.5 | 1E | e1 | 0x10 | 0b1 | 0o7 | 1_000 | 1 0 | 1,5 | "
            rb"1f | NaN | -NaN | Infinity | -Infinity | +Infinity | inf | nan | "
            rb"1/2"
        ).split(b" | "),
        b"\xd9\xa1",
        b"\xef\xbc\x91",
        b"\xe2\x88\x921",
        b"0\x00",
    ],
)
def test_what_only_looks_like_a_number_is_refused(source: bytes) -> None:
    assert_refused(read_value(source))


@pytest.mark.parametrize(
    "source",
    [
        *(
            rb"True | TRUE | tru | truee | truefalse | nul | nulll | None | "
            rb"nil | undefined | yes | a | t | 'a' | `a` | /a/ | \u0061 | =1"
        ).split(b" | "),
        b"",
    ],
)
def test_other_words_are_refused(source: bytes) -> None:
    assert_refused(read_value(source))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (b"", ""),
        (rb"\"\\\/\b\f\n\r\t", '"\\/\b\f\n\r\t'),
        (rb"\u0041\u006d\u00E9\u20ac", "Am\u00e9\u20ac"),
        (rb"\uD83D\ude00", "\U0001f600"),
        (rb"\u0000\u001f", "\0\x1f"),
        (rb"\\u0041", "\\u0041"),
        (rb"\u2028\ufeff\uffff", "\u2028\ufeff\uffff"),
        (b"/'\x7f", "/'\x7f"),
        (b"{[,:]}//#", "{[,:]}//#"),
    ],
)
def test_texts_are_read(source: bytes, text: str) -> None:
    assert decode_strictly(b'"' + source + b'"') == text
    assert isinstance(read_value(b'"' + source + b'"'), str)


@pytest.mark.parametrize(
    "source",
    [
        b"\xc2\x80\xdf\xbf",
        b"\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80",
        b"\xef\xbb\xbf\xef\xbf\xbe\xef\xbf\xbf",
        b"\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
        b"\xe2\x80\xa8\xe2\x80\xa9\xc2\x85",
    ],
)
def test_texts_beyond_ascii_are_read_as_their_bytes(source: bytes) -> None:
    value = read_value(b'"' + source + b'"')
    assert isinstance(value, str)
    assert value.encode("latin-1") == source


@pytest.mark.parametrize(
    "source",
    [
        *(
            rb"\ | \x41 | \a | \v | \0 | \' | \U0041 | \u | \u1 | \u12 | \u123 | "
            rb"\u123g | \u 123 | \u+123 | \u0x12 | \u{41} | \u-001"
        ).split(b" | "),
        b"\\ ",
        b"\\\n",
        b"\\u00\xef\xbc\x91\xef\xbc\x91",
        b'"',
        b'"a',
        *[bytes([control]) for control in range(0x20)],
    ],
)
def test_odd_escapes_and_raw_controls_are_refused(source: bytes) -> None:
    assert_refused(read_value(b'"' + source + b'"'))


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(b"\x80", id="a continuation alone"),
        pytest.param(b"\xc3", id="two bytes cut"),
        pytest.param(b"\xe2\x82", id="three bytes cut"),
        pytest.param(b"\xf0\x9f\x98", id="four bytes cut"),
        pytest.param(b"\xc3(", id="a wrong continuation"),
        pytest.param(b"\xc0\x80", id="NUL overlong"),
        pytest.param(b"\xc1\xad", id="m overlong"),
        pytest.param(b"\xe0\x9f\xbf", id="three bytes overlong"),
        pytest.param(b"\xf0\x8f\xbf\xbf", id="four bytes overlong"),
        pytest.param(b"\xed\xa0\x80", id="high surrogate"),
        pytest.param(b"\xed\xbf\xbf", id="low surrogate"),
        pytest.param(b"\xed\xa0\xbd\xed\xb8\x80", id="surrogates as CESU-8"),
        pytest.param(b"\xf4\x90\x80\x80", id="beyond Unicode"),
        pytest.param(b"\xf8\x88\x80\x80\x80", id="five bytes"),
        pytest.param(b"\xfe\xff", id="no such byte"),
        pytest.param(b"\xe9", id="Latin-1"),
    ],
)
def test_what_is_not_utf_8_is_refused(source: bytes) -> None:
    assert_refused(read_value(b'"a' + source + b'b"'))


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (b"[]", []),
        (b"{}", {}),
        (b"[ ]", []),
        (b"{\t}", {}),
        (b"[1,[2,[3]],{}]", [1, [2, [3]], {}]),
        (b' {"" :\r\n[ null ,0 ] }\t', {"": [None, 0]}),
        (b'{"a":{"b":{"c":[]}}}', {"a": {"b": {"c": []}}}),
        (b'{"A":1,"a":2}', {"A": 1, "a": 2}),
        (b'[{"a":1},{"a":1}]', [{"a": 1}, {"a": 1}]),
        (b"[" * 64 + b"]" * 64, None),
    ],
)
def test_structures_are_read(source: bytes, value: object) -> None:
    found = read_value(source)
    assert found == value or (value is None and isinstance(found, list))


@pytest.mark.parametrize(
    "source",
    [
        *(
            rb"[ | ] | [1 | 1] | [1,] | [,1] | [,] | [1,,2] | [1 2] | [1;2] | "
            rb"[1:2] | []] | [[] | (1) | [1} | {] | { | } | {}} | {{}} | {:1} | "
            rb"{a:1} | {'a':1} | {1:1} | {null:1} | {[]:1} | [] [] | []{} | "
            rb"1// | 1/**/ | [/**/] | <!---->1 | ... | *"
        ).split(b" | "),
        *(
            rb'{"a"} | {"a":} | {"a",1} | {"a" 1} | {"a"::1} | {"a"=1} | {"a":1,} | '
            rb'{,"a":1} | {"a":1,,"b":2} | {"a":1;"b":2} | {"a":1 "b":2} | '
            rb'{"a":1:2} | "a" "b"'
        ).split(b" | "),
        b"#\n1",
    ],
)
def test_broken_structures_are_refused(source: bytes) -> None:
    assert_refused(read_value(source))


@pytest.mark.parametrize(
    "source",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"b":2,"a":3}',
        rb'{"a":1,"\u0061":2}',
        b'{"":1,"":1}',
        b'[{"a":{"b":1,"b":1}}]',
        '{"\u00e9":1,"\\u00E9":2}'.encode(),
    ],
)
def test_a_key_that_comes_twice_is_refused_at_any_depth(source: bytes) -> None:
    assert_refused(read_value(source))
