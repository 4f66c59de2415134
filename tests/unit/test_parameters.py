"""What a key may ask of the machine: bounds, presets, and how people write them."""

from __future__ import annotations

import re
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.parameters import PRESETS, RULES, Parameters, parse_parameters

LLAMA = "registry.ollama.ai/library/llama3.1:latest"
LARGE = "registry.ollama.ai/library/llama3.1:70b"
DOCS = Path(__file__).parents[2] / "docs" / "parameters.md"


def beyond(parameters: str, model: str | None = LLAMA, **amounts: float) -> str | None:
    return parse_parameters(parameters).first_beyond(amounts, model)


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [
        ("any", [-inf, -1, 0, 1, inf], []),
        ("never", [], [-inf, -1, 0, 1, inf]),
        ("7", [7], [6, 8, -7]),
        ("-1", [-1], [0, 1, -2]),
        ("2..4", [2, 3, 4], [1, 5]),
        ("..4", [-inf, -9, 4], [5, inf]),
        ("2..", [2, inf], [1, -inf]),
        ("-1|2..4|9..", [-1, 3, 9, inf], [0, 5, 8]),
    ],
)
def test_a_bound_admits_its_ranges(
    bound: str, inside: list[float], outside: list[float]
) -> None:
    for amount in inside:
        assert beyond(f"default,num_predict={bound}", num_predict=amount) is None
    for amount in outside:
        assert beyond(f"default,num_predict={bound}", num_predict=amount)


def test_a_life_in_memory_is_bounded_by_durations() -> None:
    limited = "default,keep_alive=30s|1m..2h"
    for seconds in (30, 60, 7200):
        assert beyond(limited, keep_alive=seconds) is None
    for other in (0, 29, 31, 7201, inf):
        assert beyond(limited, keep_alive=other) == "keep_alive"
    assert beyond("default,keep_alive=forever", keep_alive=inf) is None


@pytest.mark.parametrize(
    ("amounts", "default", "strict"),
    [
        ({"keep_alive": 0}, False, False),
        ({"keep_alive": inf}, True, False),
        ({"keep_alive": 1800}, True, True),
        ({"load": 1}, True, False),
        ({"unload": 1}, False, False),
        ({"num_ctx": 8192}, True, True),
        ({"num_ctx": 8193}, True, False),
        ({"num_ctx": 1}, False, False),
        ({"num_ctx": 10**7}, False, False),
        ({"num_gpu": -1, "num_thread": 0}, True, True),
        ({"main_gpu": 0, "num_batch": 512, "use_mmap": 1}, True, False),
        ({"num_gpu": 0}, False, False),
        ({"num_gpu": 99}, False, False),
        ({"main_gpu": 1}, False, False),
        ({"num_batch": 4096}, False, False),
        ({"num_thread": 1}, False, False),
        ({"use_mmap": 0}, False, False),
        ({"draft_num_predict": 4}, False, False),
        ({"repeat_last_n": -1}, True, True),
        ({"repeat_last_n": 2**31 - 1}, False, False),
        ({"text_bytes": 10**6}, True, False),
        ({"messages": 1000}, True, False),
        ({"tools": 100}, True, False),
        ({"sounds": 1}, True, False),
        ({"shift": 0}, False, False),
        ({"shift": 1}, False, False),
        ({"num_predict": -1}, True, False),
        ({"num_predict": 8192}, True, True),
        ({"inputs": 129, "input_bytes": 9}, True, False),
        ({"inputs": 3000}, False, False),
        ({"input_bytes": 10**6}, True, False),
        ({"images": 5}, True, False),
        ({"image_bytes": 10**7}, True, False),
        ({"image_pixels": 48_000_000}, True, False),
        ({"image_pixels": inf}, False, False),
        ({"stops": 9}, True, False),
        ({"stop_bytes": 9999}, False, False),
        ({"format_bytes": 9000}, True, False),
        ({"context_tokens": 10**6}, False, False),
        ({"template": 1}, True, False),
        ({"raw": 1}, True, False),
        ({"system": 1}, True, False),
        ({"web_search": 1}, True, False),
    ],
)
def test_the_presets_draw_the_line(
    amounts: dict[str, float], default: bool, strict: bool
) -> None:
    for preset, passes in (("default", default), ("strict", strict)):
        beyond = parse_parameters(preset).first_beyond(amounts, LLAMA)
        assert (beyond is None) == passes


def test_every_rule_has_a_line_in_both_presets_and_a_reason() -> None:
    for preset in PRESETS:
        in_force = parse_parameters(preset).in_force()
        assert in_force.keys() == RULES.keys()
        for name, bound in in_force.items():
            assert str(parse_parameters(f"{preset},{name}={bound}"))
    assert all(rule.why for rule in RULES.values())


def test_a_limit_for_some_models_goes_before_one_for_all() -> None:
    text = "strict,num_ctx@llama3.1:*=4096,num_ctx=2048,num_ctx@llama3.1:70b=1024"
    assert beyond(text, LLAMA, num_ctx=4096) is None
    assert beyond(text, LLAMA, num_ctx=2048) == "num_ctx"
    assert beyond(text, LARGE, num_ctx=1024) is None
    assert beyond(text, LARGE, num_ctx=4096) == "num_ctx"
    for other in ("registry.ollama.ai/library/qwen3:latest", None):
        assert beyond(text, other, num_ctx=2048) is None
        assert beyond(text, other, num_ctx=4096) == "num_ctx"


@pytest.mark.parametrize(
    "text",
    [
        *("", "lax", "Default", "default,", "default,num_ctx", "default,num_ctx="),
        *("default,num_ctx=1.5", "default,num_ctx=1e3", "default,num_ctx=nan"),
        *(
            "default,num_ctx=..",
            "default,num_ctx=4..2",
            "default,num_ctx=1|",
            "strict,x=1",
        ),
        *(
            "default,num_ctx=1...2",
            "default,num_ctx=" + "9" * 16,
            "default,num_ctx=\u0661",
        ),
        *("default,keep_alive=5", "default,keep_alive=1d", "default,keep_alive=-1s"),
        *("default,num_ctx@a b=1", "default,num_ctx@m:cloud=1", "default,num_ctx@=1"),
        "default,num_ctx=1,num_ctx=2",
        "default,num_ctx@m=1,images=2,num_ctx@M:latest=3",
        "default" + "".join(f",num_ctx@m{number}=1" for number in range(201)),
    ],
)
def test_what_cannot_be_read_is_an_error_for_people(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_parameters(text)


_BOUNDS = st.sampled_from(["any", "never", "-1", "1..", "..9", "1..9|20|30..40"])
_PLACES = st.sampled_from(["num_ctx", "num_predict", "images"]).flatmap(
    lambda name: st.sampled_from([name, f"{name}@llama3.1:*", f"{name}@Hf.co/a/b:c"])
)
_SPECS = st.builds(
    lambda preset, limits: ",".join([preset, *(f"{p}={b}" for p, b in limits.items())]),
    st.sampled_from(PRESETS),
    st.dictionaries(_PLACES, _BOUNDS, max_size=4),
)


@given(_SPECS)
def test_what_is_stored_is_read_back(text: str) -> None:
    parameters = parse_parameters(text)
    assert parse_parameters(str(parameters)) == parameters


@given(st.text(max_size=60) | st.from_regex(r"default,[a-z_@=.|0-9]{0,30}"))
def test_any_text_is_read_or_an_error(text: str) -> None:
    try:
        parameters = parse_parameters(text)
    except ValueError:
        return
    assert isinstance(parameters, Parameters)


def test_the_page_for_people_says_what_the_rules_are() -> None:
    row = re.compile(r"^\| `(\w+)` \| `(.*?)` \| `(.*?)` \| (.*?) \|$", re.MULTILINE)
    plain = DOCS.read_text().replace("\\|", "\0")  # a bar inside a cell
    written = [
        tuple(cell.replace("\0", "|") for cell in cells) for cells in row.findall(plain)
    ]
    assert written == [(n, r.default, r.strict, r.why) for n, r in RULES.items()]
