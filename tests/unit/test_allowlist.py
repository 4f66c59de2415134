"""Patterns over model names."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.allowlist import Allowlist, canonical_pattern
from authz.core.names import canonical


def allows(patterns: str, name: str) -> bool:
    forms = tuple(filter(None, map(canonical_pattern, patterns.split(","))))
    form = canonical(name)
    assert isinstance(form, str)
    return Allowlist(forms).allows(form)


@pytest.mark.parametrize(
    ("patterns", "name"),
    [
        ("*", "hf.co/any/thing:x"),
        ("llama3.1", "llama3.1"),
        ("llama3.1", "LLAMA3.1:latest"),
        ("Llama3.1", "registry.ollama.ai/library/llama3.1"),
        ("llama3.1:*", "llama3.1:8b"),
        ("llama*:8b", "llama3.1:8b"),
        ("*:8b", "qwen3:8b"),
        ("hf.co/bartowski/*:*", "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M"),
        ("*/*/*:*", "hf.co/b/x:y"),
        ("qwen3,llama3.1:*", "llama3.1:8b"),
        ("a*b*c", "a-b-b-c"),
        ("a*a", "aa"),
    ],
)
def test_a_pattern_allows_what_it_spells(patterns: str, name: str) -> None:
    assert allows(patterns, name)


@pytest.mark.parametrize(
    ("patterns", "name"),
    [
        ("llama3.1", "llama3.1:8b"),
        ("llama3.1", "hf.co/library/llama3.1"),
        ("llama3.1:*", "llama3.10:8b"),
        ("llama*", "hf.co/llama/llama3"),
        ("*:*", "other/llama3:8b"),
        ("hf.co/bartowski/*:*", "hf.co/other/x:y"),
        ("hf.co/*/*:*", "hf.co.evil.example/b/x:y"),
        ("a*a", "a"),
        ("a*b*c", "a-c-b"),
    ],
)
def test_a_pattern_allows_nothing_else(patterns: str, name: str) -> None:
    assert not allows(patterns, name)


def test_every_one_of_many_patterns_counts() -> None:
    forms = [f"start{n}*,*end{n}:*,mid*{n}*dle,m{n}:*,h/n{n}/*:*" for n in range(200)]
    names = [f"start7x,xend7:t,mid-7-dle,m7:t,h/n7/x:t,{'a' * 80}".split(",")]
    found = [allows(",".join(forms), name) for name in names[0]]
    assert found == [True, True, True, True, True, False]


def test_a_name_has_the_same_answer_when_asked_again() -> None:
    models = Allowlist(("registry.ollama.ai/library/a*:latest",))
    names = [f"registry.ollama.ai/library/{c}:latest" for c in ("a1", "b1")]
    assert [models.allows(name) for name in names * 2] == [True, False] * 2


def test_no_pattern_allows_nothing() -> None:
    assert not Allowlist(()).allows("registry.ollama.ai/library/llama3.1:latest")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "m:cloud",
        "m:8b-cloud",
        "m:LOCAL",
        "*:*-cloud",
        "a/b/c/d",
        "m:",
        "**/",
        "http://h/n/m",
        "m n",
        "m\n",
        "a.b/c",
        "-m",
        "m" * 81,
        "[a]",
        "m?",
        "h//m",
    ],
)
def test_what_no_name_could_be_is_no_pattern(text: str) -> None:
    assert canonical_pattern(text) is None


@given(
    st.text(alphabet="ab*", min_size=1, max_size=8), st.text(alphabet="ab", min_size=1)
)
def test_a_star_means_what_it_means_in_a_shell(pattern: str, name: str) -> None:
    assert allows(pattern, name[:80]) == fnmatch.fnmatchcase(name[:80], pattern)
