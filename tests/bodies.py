"""Bodies for Hypothesis: such as clients send, and such as readers disagree on.

Bodies are put together from pieces of source text, because the disagreements
lie in the text: twice the same key, another case, an escape, what follows.
"""

from __future__ import annotations

import json

from hypothesis import strategies as st

_FIELDS = ("model", "name", "from", "source", "destination", "stream", "options")
_INTEGERS = st.integers(-(2**63), 2**63)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_SCALARS = st.none() | st.booleans() | _INTEGERS | _FLOATS


def _escaped(text: str) -> str:
    """Write one letter of a key as an escape."""
    return f"{text[:2]}\\u{ord(text[2]):04x}{text[3:]}"


def _spellings(field: str) -> st.SearchStrategy[str]:
    return st.sampled_from(
        [field] * 4
        + [field.upper(), field.title(), _escaped(field), f"{field} "]
        + [f"{field}\\u0000", field.replace("s", "\u017f"), f"\\ud800{field}"]
    )


_KEYS = st.sampled_from(_FIELDS).flatmap(_spellings)
_NAMES = st.sampled_from(
    ["llama3.1"] * 4
    + ["LLaMA3.1:latest", "evil", "evil:cloud", "evil:8b-CLOUD", "evil:local", ""]
    + [" llama3.1", "x://evil/a/b", "h:1/n/m:t", "llama\\u0033.1", "a\\u0000b"]
    + ["\\ud83d\\ude00", "\\ud800", "\u212aimi", "evil\\n", "a@sha256:b", "\\x"]
)
_TEXTS = _NAMES.map('"{}"'.format)
_WORDS = st.sampled_from(
    [
        "null",
        "true",
        "0",
        "-1.5e3",
        "1e999",
        "9" * 5000,
        "01",
        "NaN",
        "-Infinity",
        "'a'",
    ]
)
_SPACE = st.sampled_from([""] * 50 + [" ", "\r\n\t", "\f", "\u00a0", "/**/"])
_SEPARATOR = st.sampled_from([","] * 50 + [",,", "", ";"])


def _members(
    values: st.SearchStrategy[str], keys: st.SearchStrategy[str] = _KEYS
) -> st.SearchStrategy[str]:
    return st.builds('"{0}"{1}:{1}{2}'.format, keys, _SPACE, values)


@st.composite
def _objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    sources = draw(st.lists(_members(values), max_size=5))
    separator = draw(_SEPARATOR) if len(sources) > 1 else ""
    return "{" + separator.join(sources) + "}"


_VALUES = st.recursive(
    _TEXTS | _TEXTS | _WORDS,
    lambda inner: (
        _objects(inner) | st.lists(inner, max_size=3).map(lambda v: f"[{','.join(v)}]")
    ),
    max_leaves=6,
)
_BEFORE = st.sampled_from([b""] * 30 + [b" \n", b"\xef\xbb\xbf", b"\f", b"null", b"{}"])
_AFTER = st.sampled_from(
    [b""] * 30 + [b"\r\n", b"\0", b"}", b'{"model":"evil"}', b"x", b"\x1a"]
)


@st.composite
def _documents(draw: st.DrawFn) -> bytes:
    source = draw(_objects(_TEXTS | _TEXTS | _VALUES)).encode("utf-8")
    return draw(_BEFORE) + source + draw(_AFTER)


@st.composite
def _damaged(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> bytes:
    """Overwrite a few bytes of a body."""
    body = draw(bodies)
    start = draw(st.integers(0, len(body)))
    cut = draw(st.integers(0, 3))
    return body[:start] + draw(st.binary(max_size=3)) + body[start + cut :]


_JSON = st.recursive(
    _SCALARS | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)

plain = st.builds(
    lambda extra, ascii_only: json.dumps(
        {**extra, "model": "llama3.1"}, ensure_ascii=ascii_only
    ).encode(),
    st.dictionaries(st.sampled_from(["prompt", "metadata", "seed", "$x_1"]), _JSON),
    st.booleans(),
)
"""What a client's JSON library writes: the model ``llama3.1`` and other fields."""

_FIELD_SETS = st.sampled_from(
    [("model",), ("model",), ("model", "name"), ("model", "from")]
    + [("source", "destination")] * 2
)
_GOOD_NAMES = st.sampled_from(
    ["llama3.1"] * 3 + ["LLaMA3.1:latest", "evil", "evil:cloud", " evil", "x://h/n/m"]
).map('"{}"'.format)


@st.composite
def _rivals(draw: st.DrawFn) -> bytes:
    """Write an object that names its models, perhaps twice, in a good form."""
    fields = draw(_FIELD_SETS)
    wanted = [f'"{field}":{draw(_GOOD_NAMES)}' for field in fields]
    rival = st.sampled_from(fields).flatmap(_spellings)
    values = _GOOD_NAMES | st.sampled_from(["null", '""', "NaN", "1"])
    rivals = draw(st.lists(_members(values, rival), max_size=2))
    members = draw(st.permutations(wanted + rivals))
    return ("{" + ",".join(members) + "}").encode() + draw(_AFTER)


anything = st.sampled_from(
    [_rivals()] * 5
    + [_documents()] * 2
    + [_damaged(_documents()), _damaged(_rivals()), _damaged(plain), st.binary()]
).flatmap(lambda kind: kind)
"""Every kind of body, most of them close to one that a reader accepts."""

_SWITCHES = st.sampled_from(
    [
        "insecure",
        "Insecure",
        "in\u017fecure",
        "in\\u0073ecure",
        "remote_host",
        "REMOTE_HOST",
        "_debug_render_only",
        "_Debug_Render_Only",
    ]
)
_SETTINGS = st.sampled_from(["true", "false", "null", '""', '"ollama.com"', "0", "[]"])

with_switches = st.lists(_members(_SETTINGS, _SWITCHES), max_size=3).map(
    lambda switches: (
        "{"
        + ",".join(['"model":"m"', '"source":"m"', '"destination":"n"', *switches])
        + "}"
    ).encode()
)
"""Bodies for routes of ``manage``, with the fields that no key may set."""
