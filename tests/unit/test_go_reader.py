"""The model of Go's reading is right: it answers as runs of Go's own code did."""

from __future__ import annotations

import pytest

from tests import go_names
from tests.go_json import GoError
from tests.go_reader import Kind, read_passthrough_model, read_struct

KINDS = {
    "model": Kind.TEXT,
    "source": Kind.TEXT,
    "remote_host": Kind.TEXT,
    "keep_alive": Kind.TEXT,
    "insecure": Kind.FLAG,
    "stream": Kind.OPTIONAL_FLAG,
    "options": Kind.MAP,
    "messages": Kind.LIST,
}
LLAMA = "registry.ollama.ai/library/llama3.1:latest"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b'{"model":"a","model":"b"}', {"model": "b"}),
        (b'{"model":"a","Model":"b"}', {"model": "b"}),
        (b'{"Model":"b","model":"a"}', {"model": "a"}),
        (b'{"MODEL":"b"}', {"model": "b"}),
        (b'{"model":"a","model":null}', {"model": "a"}),
        (b'{"model":null}', {}),
        (b"null", {}),
        (rb'{"mo\u0064el":"x"}', {"model": "x"}),
        (b'{"model":"a"}{"model":"b"}', {"model": "a"}),
        (b'{"model":"a"} x', {"model": "a"}),
        (b'{"model":"a"}\0', {"model": "a"}),
        (b'{"model":"a\xe2\x82"}', {"model": "a\ufffd\ufffd"}),
        (b'{"model":"\xed\xa0\x80"}', {"model": "\ufffd\ufffd\ufffd"}),
        (rb'{"model":"\ud800x"}', {"model": "\ufffdx"}),
        (rb'{"model":"\ud83d\ude00\\ud800"}', {"model": "\U0001f600\\ud800"}),
        (rb'{"model":"a\u0000b"}', {"model": "a\0b"}),
        (b'{"x":1e999,"y":' + b"9" * 5000 + b"}", {}),
        (rb'{"model ":"a","model\u0000":"a"}', {}),
        (b'{"mode\xff":"a"}', {}),
        ('{"\u017fource":"x"}'.encode(), {"source": "x"}),
        ('{"remote_ho\u017ft":"x"}'.encode(), {"remote_host": "x"}),
        ('{"\u212aeep_alive":"x"}'.encode(), {"keep_alive": "x"}),
        ('{"mod\u0435l":"x"}'.encode(), {}),
        (b'{"insecure":true,"insecure":null}', {"insecure": True}),
        (b'{"stream":true,"Stream":null}', {}),
        (b'{"options":{"a":1},"options":{"b":2}}', {"options": {"a": 1, "b": 2}}),
        (b'{"options":{"a":1},"options":{"A":2}}', {"options": {"a": 1, "A": 2}}),
        (b'{"options":{"a":1},"options":null}', {}),
        (
            b'{"messages":[{"role":"system"}],"messages":[{"content":"x"},{}]}',
            {"messages": [{"role": "system", "content": "x"}, {}]},
        ),
        (b'{"x":' + b"[" * 9999 + b"]" * 9999 + b"}", {}),
    ],
)
def test_a_struct_holds_what_go_decodes(body: bytes, fields: dict[str, object]) -> None:
    assert read_struct(body, KINDS) == fields


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":1}',
        b'{"model":["a"]}',
        b'{"model":1,"model":"a"}',
        b'{"options":[]}',
        b'{"messages":{}}',
        b'{"options":{"a":1e999}}',
        b'{"options":{"a":[{"b":-1e999}]}}',
        b"[]",
        b'"model"',
        b'\xef\xbb\xbf{"model":"a"}',
        '{"model":"a"}'.encode("utf-16"),
        b'{"model":"a",}',
        b"{'model':'a'}",
        b'{"model":"a"/**/}',
        b'{"x":NaN}',
        b'{"x":01}',
        b'{"x":1.}',
        b'{"x":+1}',
        b'\f{"model":"a"}',
        b'{"model":"a\n"}',
        rb'{"model":"\x"}',
        b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b"",
        b" \n",
        b'{"model":"a"',
        b'{"model"}',
        b"{1:2}",
    ],
)
def test_a_struct_is_refused_what_go_refuses(body: bytes) -> None:
    with pytest.raises(GoError):
        read_struct(body, KINDS)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"evil:cloud","Model":"allowed"}', "evil:cloud"),
        (b'{"model":"allowed","Model":"evil"}', "allowed"),
        (b'{"model":"a","model":"b"} \n', "b"),
        (b'{"model":"a","model":null}', None),
        (rb'{"mo\u0064el":"x"}', "x"),
        (b'{"model":"a"}{}', None),
        (b'{"model":"a"}\0', None),
        (b'{"Model":"a"}', None),
        (b'{"model":1}', None),
        (b'["model"]', None),
        (b"null", None),
        (b"", None),
    ],
)
def test_the_passthrough_reads_one_exact_key_of_the_whole_body(
    body: bytes, model: str | None
) -> None:
    assert read_passthrough_model(body) == model


@pytest.mark.parametrize(
    ("name", "source", "canonical"),
    [
        ("llama3.1", "", LLAMA),
        ("REGISTRY.OLLAMA.AI/Library/LLaMA3.1:Latest", "", LLAMA),
        ("x y\0://registry.ollama.ai/library/llama3.1", "", LLAMA),
        ("evil/a/b://registry.ollama.ai/library/llama3.1", "", LLAMA),
        ("http:///library/llama3.1", "", LLAMA),
        ("\u00a0llama3.1:latest\u3000\n", "", LLAMA),
        ("llama3.1: LOCAL", "local", LLAMA),
        ("llama3.1:8B-Cloud", "cloud", "registry.ollama.ai/library/llama3.1:8b"),
        ("host:5000/n/m:cloud", "cloud", "host:5000/n/m:latest"),
        ("host:cloud/ns/m", "", "host:cloud/ns/m:latest"),
        ("llama3.1-cloud", "", "registry.ollama.ai/library/llama3.1-cloud:latest"),
    ],
)
def test_a_name_is_what_ollama_makes_of_it(
    name: str, source: str, canonical: str
) -> None:
    found, base = go_names.source_and_base(name)
    assert (found, go_names.canonical(base)) == (source, canonical)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\ufeffm",
        "\x1fm",
        "m :local",
        "m:-cloud",
        "a:local:local",
        "host:5/m",
        "m@sha256:a",
        "/m",
        "a//m",
        "m/",
        "a/b/c/d",
        "m:",
        "m::t",
        ":t",
        "-m",
        "m:.t",
        "a.b/c",
        "n:s/m",
        "\u212ai",
        "8" * 81,
        "h" * 351 + "/n/m",
        "h://x://y/n/m",
    ],
)
def test_a_name_is_invalid_where_ollama_says_so(name: str) -> None:
    with pytest.raises(go_names.BadName):
        go_names.canonical(go_names.source_and_base(name)[1])
