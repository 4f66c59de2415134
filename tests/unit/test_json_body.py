"""What a body is as a whole: one object, plain keys, white space, bounds."""

from __future__ import annotations

import pytest

from tests.strict import assert_refused, read, read_value


@pytest.mark.parametrize("space", [b" ", b"\t", b"\n", b"\r", b" \r\n\t" * 9])
def test_space_is_read_around_every_token(space: bytes) -> None:
    tokens = [b"{", b'"x"', b":", b"[", b"1", b",", b"2", b"]", b"}"]
    assert read(space + space.join(tokens) + space) == {"x": [1, 2]}


@pytest.mark.parametrize(
    "space",
    [
        *(rb"/**/ | \n | ,").split(b" | "),
        *map(bytes, zip(b"\0\b\v\f\x1c\x1f\x7f\x85\xa0")),
        *map(str.encode, "\u00a0\u0085\u2028\u3000\u200b\ufeff"),
        b"//\n",
        b"#\n",
    ],
)
@pytest.mark.parametrize("place", [b"%s{}", b"{}%s", b'{"x":%s1}', b'{%s"x":1}'])
def test_no_other_space_or_comment_is_read(place: bytes, space: bytes) -> None:
    assert_refused(read(place % space))


@pytest.mark.parametrize(
    "body",
    [
        *(
            rb"null | true | 0 | [] | [{}] | { | } | {}{} | {} {} | {}null | "
            rb"{}, | {}] | data: {} | model=m | a:1"
        ).split(b" | "),
        b"",
        b" ",
        b'"{}"',
        b'["model"]',
        b"{}\n{}\n",
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b"\x1e{}\n",
    ],
)
def test_a_body_is_one_object(body: bytes) -> None:
    assert_refused(read(body))


@pytest.mark.parametrize(
    "key",
    [
        *(
            rb"Model | MODEL | mod.el | a-b | \u0000 | \ud800 | a\nb | "
            rb"model\u0000 | a/b"
        ).split(b" | "),
        b"model ",
        b"",
        b"\xc5\xbfource",
        "\u212aeep_alive".encode(),
    ],
)
def test_a_top_level_key_is_plain_lower_case(key: bytes) -> None:
    assert_refused(read(b'{"' + key + b'":1}'))


def test_a_lone_surrogate_is_read_in_a_text_but_not_in_a_key() -> None:
    """Clients cut texts in the middle of an emoji; Go reads such keys as one."""
    assert isinstance(read_value(rb'"\ud83d"'), str)
    assert_refused(read_value(rb'{"\ud83d":1}'))
    assert_refused(read_value(rb'{"\ud83d":1,"\ude00":2}'))


@pytest.mark.parametrize(
    "members",
    [
        '"\u00e9":1,"\u00e9":2',
        r'"\u00e9":1,"\u00e9":2'.replace("\\u00e9", "\u00e9", 1),
        r'"\u00e9":1,"\u00E9":2',
        r'"a\ud83d\ude00":1,"aX":2'.replace("X", "\U0001f600"),
        '"x":{"\u00e9":1,"\u00e9":2}',
    ],
)
def test_a_key_beyond_ascii_does_not_stand_twice_in_any_spelling(members: str) -> None:
    assert_refused(read_value(b"{%b}" % members.encode()))


@pytest.mark.parametrize(
    "members",
    ['"\u00e9":1,"\u00e8":2', r'"\u00c3\u00a9":1,"X":"\n"'.replace("X", "\u00e9")],
)
def test_keys_beyond_ascii_that_differ_are_read(members: str) -> None:
    assert isinstance(read_value(b"{%b}" % members.encode()), dict)


@pytest.mark.parametrize("at", range(65_530, 65_540))
def test_a_sign_of_several_bytes_may_stand_anywhere(at: int) -> None:
    body = b'{"x":"%b\xf0\x9f\x98\x80"}' % (b"a" * (at - 6))
    assert isinstance(read(body), dict)
    assert_refused(read(body.replace(b"\x9f", b"")))
    assert_refused(read(body[:-3] + b'"}'))


def test_an_escaped_key_is_the_key() -> None:
    assert read(rb'{"mo\u0064el":"m"}') == {"model": "m"}


@pytest.mark.parametrize("depth", [10_001, 100_000])
@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_what_is_deeper_than_go_reads_is_refused(
    depth: int, start: bytes, end: bytes
) -> None:
    assert_refused(read_value(start * depth + b"0" + end * depth))


@pytest.mark.parametrize(
    "source", [b"1e999", b"-1E+999", b"9" * 400, b"-" + b"9" * 400]
)
def test_a_number_beyond_a_double_is_refused(source: bytes) -> None:
    assert_refused(read_value(source))
