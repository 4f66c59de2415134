"""Model names as Ollama reads them; the vectors come from runs of its own code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.model import Reason
from authz.core.names import canonical

LLAMA = "registry.ollama.ai/library/llama3.1:latest"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3.1", LLAMA),
        ("llama3.1:latest", LLAMA),
        ("library/llama3.1", LLAMA),
        ("registry.ollama.ai/library/llama3.1:latest", LLAMA),
        ("REGISTRY.OLLAMA.AI/Library/LLaMA3.1:Latest", LLAMA),
        ("llama3.1:8b-local", "registry.ollama.ai/library/llama3.1:8b-local"),
        ("llama3.1-cloud", "registry.ollama.ai/library/llama3.1-cloud:latest"),
        ("my-cloud-model", "registry.ollama.ai/library/my-cloud-model:latest"),
        ("cloud", "registry.ollama.ai/library/cloud:latest"),
        ("local", "registry.ollama.ai/library/local:latest"),
        ("host:cloud/ns/m", "host:cloud/ns/m:latest"),
        (
            "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
            "hf.co/bartowski/llama-3.2-1b-instruct-gguf:q4_k_m",
        ),
        ("HF.CO/b/X", "hf.co/b/x:latest"),
        ("host:5000/ns/m", "host:5000/ns/m:latest"),
        (
            "registry.ollama.ai:443/library/llama3.1",
            "registry.ollama.ai:443/library/llama3.1:latest",
        ),
        (
            "registry.ollama.ai./library/llama3.1",
            "registry.ollama.ai./library/llama3.1:latest",
        ),
        ("huggingface.co/b/X", "huggingface.co/b/x:latest"),
        ("a..b", "registry.ollama.ai/library/a..b:latest"),
        ("_m", "registry.ollama.ai/library/_m:latest"),
        ("m-", "registry.ollama.ai/library/m-:latest"),
        ("m.", "registry.ollama.ai/library/m.:latest"),
        ("m:_t", "registry.ollama.ai/library/m:_t"),
        ("8" * 80, f"registry.ollama.ai/library/{'8' * 80}:latest"),
        ("m:" + "8" * 80, f"registry.ollama.ai/library/m:{'8' * 80}"),
        ("h" * 350 + "/n/m", f"{'h' * 350}/n/m:latest"),
        ("host/namespace/model", "host/namespace/model:latest"),
        ("h/nn/mm:t", "h/nn/mm:t"),
        ("_why/_the/_lucky:_stiff", "_why/_the/_lucky:_stiff"),
    ],
)
def test_a_name_has_one_canonical_form(name: str, expected: str) -> None:
    assert canonical(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "llama3.1:cloud",
        "llama3.1:8b:cloud",
        "llama3.1:8b-cloud",
        "llama3.1:8B-Cloud",
        "llama3.1:local",
        "llama3.1:LOCAL",
        "llama3.1:-cloud",
        "llama3.1:cloud:local",
        "a:x-cloud-cloud",
        "a:8b-cloud:cloud",
        "a:local:local",
        "llama3.1:8b:local",
        "localhost:11434/library/foo:cloud",
    ],
)
def test_a_name_that_says_where_to_run_is_refused(name: str) -> None:
    assert isinstance(canonical(name), Reason)


@pytest.mark.parametrize(
    "name",
    [
        # Ollama would read these as an allowed model; we do not interpret.
        "https://registry.ollama.ai/library/llama3.1",
        "http://registry.ollama.ai/library/llama3.1",
        "://registry.ollama.ai/library/llama3.1",
        "x y\0://registry.ollama.ai/library/llama3.1",
        "evil/a/b://registry.ollama.ai/library/llama3.1",
        "http:///library/llama3.1",
        " llama3.1 ",
        "llama3.1:latest\n",
        "\u00a0llama3.1\u3000",
        "llama3.1: local",
        # These it refuses too.
        "\ufeffllama3.1",
        "\u200bllama3.1",
        "llama3.1 :local",
        "host:5000/m",
        "m@sha256:abc",
        "m@sha256-abc",
        "@sha256:abc",
        "http://llama3.1",
        "/llama3.1",
        "/library/llama3.1",
        "library//llama3.1",
        "llama3.1/",
        "a/b/c/d",
        "llama3.1:",
        "llama3.1::latest",
        "llama3.1:8b:q4",
        ":latest",
        ":cloud",
        "..",
        "../../etc/passwd",
        "m:..",
        "m:t/../x",
        ".m",
        "-m",
        "m:-t",
        "a.b/c",
        "n:s/m",
        "user@host/n/m",
        "[::1]:80/n/m",
        "C:\\models\\m",
        "m%3alatest",
        "llama 3",
        "m\0",
        "\u212aimi",
        "\u017fmall",
        "m\u0130",
        "8" * 81,
        "m:" + "8" * 81,
        "h" * 351 + "/n/m",
        "h://x://y/n/m",
        "",
        "   ",
    ],
)
def test_a_name_with_a_second_reading_or_none_is_ungrammatical(name: str) -> None:
    assert canonical(name) is Reason.MODEL_UNGRAMMATICAL


@given(st.text(alphabet="aA1_.-:/ctloud", max_size=30))
def test_the_canonical_form_is_its_own(name: str) -> None:
    form = canonical(name)
    if isinstance(form, str):
        assert canonical(form) == form == form.lower()
