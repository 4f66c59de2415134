"""What a request asks of the machine, in every type and spelling of a parameter."""

from __future__ import annotations

import base64
import json
from math import inf
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.decide import judge, read_asked
from authz.core.endpoints import ENDPOINTS
from authz.core.model import Allow, Asked, Deny, Reason, Request
from authz.core.parameters import RULES
from tests.images import png
from tests.verdicts import KEY

if TYPE_CHECKING:
    from authz.core.model import Decision

PROMPT = {"prompt": "why?"}
MESSAGES = {"messages": [{"role": "user", "content": "why?"}]}
ODD = Reason.PARAMETER_ODD
INFERENCE = [
    path for path, endpoint in ENDPOINTS.items() if endpoint.scope.value == "inference"
]
_PNG = base64.b64encode(png(3, 2)).decode()


def ask(path: str, body: object) -> Asked | Deny:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_asked(ENDPOINTS[path], Request("POST", path, {}, text))


def amounts(path: str, **fields: object) -> dict[str, float]:
    asked = ask(path, {"model": "llama3.1", **fields})
    assert isinstance(asked, Asked), asked
    found = dict(asked.amounts)
    for name in ("text_bytes", "messages"):
        found.pop(name, None)
    return found


def verdict(path: str, **fields: object) -> Decision:
    asked = ask(path, {"model": "llama3.1", **fields})
    return asked if isinstance(asked, Deny) else judge(ENDPOINTS[path], asked, KEY)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (1e-10, 0),
        (0.9e-9, 0),
        (1e-9, 1e-9),
        (1800, 1800),
        (2.5, 2.5),
        (-1, inf),
        (-1e-10, inf),
        (-0.0, 0),
        ("0", 0),
        ("0s", 0),
        ("-0s", 0),
        ("0.9ns", 0),
        ("5m", 300),
        ("+1h30m", 5400),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1h1m1s1ms1us1ns", 3661.001001001),
        ("-1s", inf),
        ("-1ns", inf),
        ("-0.5ns", 0),
    ],
)
def test_keep_alive_is_read_as_go_cuts_it(value: object, seconds: float) -> None:
    assert amounts("/api/generate", **PROMPT, keep_alive=value) == {
        "num_predict": -1,
        "keep_alive": pytest.approx(seconds),
    }


@pytest.mark.parametrize(
    "value",
    [
        *("", "5", "-1", "m", "5 m", "5d", "1e3s", "5M", "\u0665m", "5\u00b5s", "NaN"),
        *(
            True,
            False,
            [],
            [5],
            {},
            {"s": 5},
            2**53,
            -(2**60),
            1e300,
            9.3e9,
            "3000000h",
        ),
        "1" * 21 + "s",
        "1s" * 21,
    ],
)
def test_a_keep_alive_that_is_no_duration_is_refused(value: object) -> None:
    refused = ask("/api/chat", {"model": "m", **MESSAGES, "keep_alive": value})
    assert isinstance(refused, Deny)
    assert refused.reason is ODD


@pytest.mark.parametrize("zero", [0, 1e-10, "0", "0.5ns", "-0h"])
@pytest.mark.parametrize(
    ("path", "nothing"),
    [
        ("/api/generate", {}),
        ("/api/generate", {"prompt": ""}),
        ("/api/generate", {"prompt": None, "system": None}),
        ("/api/chat", {}),
        ("/api/chat", {"messages": []}),
        ("/api/embed", {"input": ""}),
        ("/api/embed", {"input": []}),
        ("/api/embeddings", {}),
    ],
)
def test_without_a_prompt_a_model_is_loaded_or_unloaded(
    path: str, nothing: dict[str, object], zero: object
) -> None:
    assert amounts(path, **nothing)["load"] == 1
    loaded = amounts(path, **nothing, keep_alive="1h")
    assert (loaded["load"], loaded["keep_alive"]) == (1, 3600)
    unloaded = amounts(path, **nothing, keep_alive=zero)
    assert unloaded["unload"] == 1
    assert "load" not in unloaded
    assert "keep_alive" not in unloaded


RUNNER = ["num_ctx", "num_gpu", "num_thread", "num_batch", "main_gpu", "repeat_last_n"]


@pytest.mark.parametrize("name", [*RUNNER, "draft_num_predict", "num_predict"])
@pytest.mark.parametrize(
    ("value", "read"), [(0, 0), (7, 7), (-1, -1), (7.9, 7), (-7.9, -7), (1e3, 1000)]
)
def test_an_option_is_cut_to_an_integer(name: str, value: float, read: int) -> None:
    for path, body in (("/api/generate", PROMPT), ("/api/chat", MESSAGES)):
        assert amounts(path, **body, options={name: value})[name] == read


@pytest.mark.parametrize("name", [*RUNNER, "draft_num_predict", "num_predict"])
@pytest.mark.parametrize("value", ["7", True, [], [7], {}, 2**53, -(2**64), 1e300])
def test_an_option_of_another_type_is_refused(name: str, value: object) -> None:
    refused = ask("/api/generate", {"model": "m", **PROMPT, "options": {name: value}})
    assert isinstance(refused, Deny)
    assert refused.reason is ODD


@pytest.mark.parametrize(
    ("name", "value"), [("num_batch", 512), ("draft_num_predict", 4)]
)
def test_null_is_a_value_where_ollama_then_takes_one(name: str, value: int) -> None:
    assert amounts("/api/generate", **PROMPT, options={name: None})[name] == value


def test_null_is_as_good_as_nothing() -> None:
    others = ["num_ctx", "num_gpu", "num_thread", "main_gpu", "num_predict"]
    options = dict.fromkeys([*others, "use_mmap", "stop", "repeat_last_n"])
    nulls = dict.fromkeys(["keep_alive", "format", "shift", "images", "context", "raw"])
    assert amounts("/api/generate", **PROMPT, **nulls, options=options) == {
        "num_predict": -1
    }
    assert amounts("/api/generate", **PROMPT, options=None) == {"num_predict": -1}


def test_options_that_ollama_does_not_know_pass() -> None:
    legacy = {
        "low_vram": True,
        "mirostat": 2,
        "NUM_CTX": 9**9,
        "num_ctx ": [],
        "f16_kv": 1,
    }
    assert amounts("/api/generate", **PROMPT, options=legacy) == {"num_predict": -1}


@pytest.mark.parametrize("options", [[], "num_ctx", 1, True, [{"num_ctx": 1}]])
def test_options_are_an_object(options: object) -> None:
    refused = ask("/api/embed", {"model": "m", "input": "x", "options": options})
    assert isinstance(refused, Deny)
    assert refused.reason is ODD


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "max_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/messages", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ],
)
def test_each_protocol_has_its_name_for_the_longest_answer(
    path: str, field: str
) -> None:
    asked = {**PROMPT, **MESSAGES, "input": "x"}
    assert amounts(path, **asked)["num_predict"] == -1
    assert amounts(path, **asked, **{field: None})["num_predict"] == -1
    assert amounts(path, **asked, **{field: 100})["num_predict"] == 100
    odd = ask(path, {"model": "m", **asked, field: "100"})
    assert isinstance(odd, Deny)
    assert odd.reason is ODD


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/generate", {"options": {"stop": ["a", "bcd"]}}),
        ("/api/chat", {"options": {"stop": ["a", "bcd"]}}),
        ("/v1/chat/completions", {"stop": ["a", "bcd"]}),
        ("/v1/completions", {"stop": ["a", "bcd"]}),
        ("/v1/messages", {"stop_sequences": ["a", "bcd"]}),
    ],
)
def test_stop_lists_are_counted(path: str, fields: dict[str, object]) -> None:
    found = amounts(path, **PROMPT, **MESSAGES, **fields)
    assert (found["stops"], found["stop_bytes"]) == (2, 3)


def test_one_stop_may_be_a_text() -> None:
    found = amounts("/v1/completions", **PROMPT, stop="abc")
    assert (found["stops"], found["stop_bytes"]) == (1, 3)


def test_a_text_that_was_read_in_full_counts_its_bytes() -> None:
    body = {"model": "m", **PROMPT, "stop": ["\u4e2d" * 10], "x": {"\u00fc": "\x1b"}}
    asked = ask("/v1/completions", json.dumps(body, ensure_ascii=False).encode())
    assert isinstance(asked, Asked)
    assert asked.amounts["stop_bytes"] == 30


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_text_counts_the_bytes_of_it_that_were_sent(ascii_only: bool) -> None:
    fields = {"model": "m", **PROMPT, "stop": ["\u4e2d" * 10]}
    asked = ask("/v1/completions", json.dumps(fields, ensure_ascii=ascii_only).encode())
    assert isinstance(asked, Asked)
    assert asked.amounts["stop_bytes"] == (60 if ascii_only else 30)


@pytest.mark.parametrize("stop", [1, {}, [1], [["a"]], {"0": "a"}, True])
def test_a_stop_list_of_other_things_is_refused(stop: object) -> None:
    refused = ask("/v1/completions", {"model": "m", **PROMPT, "stop": stop})
    assert isinstance(refused, Deny)
    assert refused.reason is ODD


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("value", "count", "longest"),
    [("abc", 1, 3), (["a", "bcde"], 2, 4), ([[1, 2, 3]], 1, 3), ([1, 2], 2, 0)],
)
def test_inputs_are_counted(path: str, value: object, count: int, longest: int) -> None:
    found = amounts(path, input=value)
    assert (found["inputs"], found["input_bytes"]) == (count, longest)


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/generate", {"format": SCHEMA}),
        ("/api/chat", {"format": SCHEMA}),
        (
            "/v1/chat/completions",
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": SCHEMA},
                }
            },
        ),
        (
            "/v1/responses",
            {"text": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
    ],
)
def test_schemas_are_measured(path: str, fields: dict[str, object]) -> None:
    found = amounts(path, **PROMPT, **MESSAGES, input="x", **fields)
    assert found["format_bytes"] == len(json.dumps(SCHEMA))


@pytest.mark.parametrize("format_", ["", "json", None])
def test_a_format_that_is_no_schema_is_not_measured(format_: object) -> None:
    assert "format_bytes" not in amounts("/api/chat", **MESSAGES, format=format_)


URI = f"data:image/png;base64,{_PNG}"
PARTS = [
    ("/api/generate", {"images": [_PNG]}),
    ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [_PNG]}]}),
    (
        "/v1/chat/completions",
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": URI}}]}]},
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"content": [{"type": "image_url", "image_url": URI}]}]},
    ),
    (
        "/v1/responses",
        {"input": [{"content": [{"type": "input_image", "image_url": URI}]}]},
    ),
    (
        "/v1/responses",
        {"input": [{"type": "function_call_output", "output": [{"image_url": URI}]}]},
    ),
    (
        "/v1/messages",
        {"messages": [{"content": [{"type": "image", "source": {"data": _PNG}}]}]},
    ),
    (
        "/v1/messages",
        {
            "messages": [
                {
                    "content": [
                        {
                            "type": "tool_result",
                            "content": [{"type": "image", "source": {"data": _PNG}}],
                        }
                    ]
                }
            ]
        },
    ),
]


@pytest.mark.parametrize(("path", "fields"), PARTS)
def test_images_are_found_in_every_protocol(
    path: str, fields: dict[str, object]
) -> None:
    found = amounts(path, **PROMPT, **fields)
    assert (found["images"], found["image_pixels"]) == (1, 6)
    assert found["image_bytes"] == pytest.approx(len(png(3, 2)), abs=2)


def test_a_sound_is_counted_as_such() -> None:
    wav = base64.b64encode(b"RIFF\0\0\0\0WAVEfmt " + bytes(20)).decode()
    found = amounts("/api/generate", **PROMPT, images=[wav, _PNG])
    assert (found["images"], found["sounds"], found["image_pixels"]) == (2, 1, 6)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "document", "source": {"type": "base64", "data": "JVBERi0="}},
    ],
)
def test_what_ollama_does_not_decode_is_no_image(part: dict[str, object]) -> None:
    found = amounts("/v1/messages", messages=[{"role": "user", "content": [part]}])
    assert "images" not in found


def test_texts_messages_and_tools_are_counted() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x", "images": [_PNG]}] * 3,
        "tools": [{"type": "function"}] * 2,
    }
    asked = ask("/api/chat", body)
    assert isinstance(asked, Asked)
    assert (asked.amounts["messages"], asked.amounts["tools"]) == (3, 2)
    text_bytes = len(json.dumps(body)) - 3 * len(_PNG)
    assert asked.amounts["text_bytes"] == text_bytes


@pytest.mark.parametrize(("path", "fields"), PARTS)
def test_a_verdict_tells_an_image_as_such(path: str, fields: dict[str, object]) -> None:
    looking = verdict(path, **PROMPT, **fields)
    assert isinstance(looking, Allow)
    assert 1_000 < (looking.input_estimate or 0) < 1_100


def test_a_verdict_leaves_what_is_all_text_to_its_bytes() -> None:
    asking = verdict("/api/generate", **PROMPT)
    assert isinstance(asking, Allow)
    assert asking.input_estimate is None


def test_a_refusal_says_what_kind_of_parameter_was_odd() -> None:
    refused = ask("/api/chat", {"model": "m", **MESSAGES, "options": {"stop": "END"}})
    assert refused == Deny(ODD, parameter="options")


def test_of_thousands_of_images_the_pixels_are_not_known() -> None:
    found = amounts("/api/generate", **PROMPT, images=[_PNG] * 65)
    assert (found["images"], found["image_pixels"]) == (65, inf)


@pytest.mark.parametrize(("path", "fields"), PARTS)
@pytest.mark.parametrize(
    ("plain", "other"),
    [
        ("images", "Images"),
        ("images", "image\u017f"),
        ("source", "\u017fource"),
        ("image_url", "IMAGE_URL"),
        ("content", "Content"),
        ("data", "Data"),
        ("url", "Url"),
        ("output", "OUTPUT"),
    ],
)
def test_no_spelling_of_an_inner_field_passes_for_it(
    path: str, fields: dict[str, object], plain: str, other: str
) -> None:
    for ascii_only in (True, False):
        text = json.dumps({"model": "m", **PROMPT, **fields}, ensure_ascii=ascii_only)
        spelled = json.dumps(other, ensure_ascii=ascii_only)
        body = text.replace(f'"{plain}":', f"{spelled}:").encode()
        if body != text.encode():
            asked = ask(path, body)
            assert isinstance(asked, Deny)


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "web_search"}],
        [{"type": "function"}, {"type": "web_search_20250305", "name": "web_search"}],
        [{"type": "WEB_SEARCH"}],
        [
            {
                "type": "namespace",
                "tools": [{"type": "namespace", "tools": [{"type": "web_search"}]}],
            }
        ],
    ],
)
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_tool_that_searches_the_web_is_seen(path: str, tools: list[object]) -> None:
    assert amounts(path, **MESSAGES, input="x", tools=tools)["web_search"] == 1
    spelled = (
        json.dumps({"model": "m", "tools": tools}).replace("type", "Type").encode()
    )
    refused = ask(path, spelled)
    assert isinstance(refused, Deny)
    assert refused.reason is ODD


@pytest.mark.parametrize("path", INFERENCE)
def test_the_prompt_that_the_operator_wrote_is_never_shown(path: str) -> None:
    for value in (True, 1, "false", [0]):
        decision = verdict(path, **MESSAGES, input="x", _debug_render_only=value)
        assert decision == Deny(Reason.PARAMETER_SWITCH)
    off = verdict(path, **MESSAGES, input="x", _debug_render_only=False)
    assert not isinstance(off, Deny)


_INNER = "num_ctx stop images content source data url type tools image_url format"
_OUTER = (
    "prompt messages options keep_alive format images context raw template system"
    " shift input max_tokens max_output_tokens stop stop_sequences response_format"
    " text tools _debug_render_only"
)
_TEXTS = ["", "0", "5m", "-1", "forever", "data:;base64,", _PNG, URI, "\ud800"]
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(_TEXTS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*_INNER.split(), "json_schema", "Images", "\u017fource"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
_FIELDS = st.dictionaries(st.sampled_from(_OUTER.split()), _VALUES, max_size=5)


@given(_FIELDS)
def test_every_value_of_every_parameter_is_decided(fields: dict[str, object]) -> None:
    body = json.dumps({"model": "llama3.1", **fields}).encode()
    for path in INFERENCE:
        asked = ask(path, body)
        if isinstance(asked, Asked):
            judge(ENDPOINTS[path], asked, KEY)
            assert asked.amounts.keys() <= RULES.keys()
