"""`authz check-envoy`: what it reads, prints and returns, whatever it is given."""

from __future__ import annotations

import json
import random
import string
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.cli.check_envoy import check_envoy
from authz.envoy_check import check
from authz.envoy_check.validate import validate
from authz.local.envoy import envoy_binary
from tests.holes import NAMES, our_files

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

    from authz.envoy_check.findings import Finding

KEY = "nz_" + "A" * 49
HOLE = ("use_remote_address: true", "use_remote_address: false")


def run(folder: Path, *options: str, **changed: bytes) -> Result:
    """Run the command on our files in a folder, with some of them changed."""
    files = our_files() | {f"{name}.yaml": text for name, text in changed.items()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    names = [str(folder / name) for name in files]
    return CliRunner().invoke(check_envoy, [*options, *names])


def found(content: str | bytes, name: str = "any.yaml") -> list[Finding]:
    """Return what is found in one file."""
    text = content.encode() if isinstance(content, str) else content
    return check({name: text}).findings


def with_hole() -> bytes:
    return our_files()["listener.yaml"].decode().replace(*HOLE).encode()


def test_files_without_a_hole_are_one_line_and_status_0(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 0
    assert result.stdout.startswith("No findings in 4 files by ")


def test_a_finding_is_one_line_and_status_1(tmp_path: Path) -> None:
    result = run(tmp_path, listener=with_hole())
    line = with_hole().decode().splitlines().index(f"        {HOLE[1]}") + 1
    (printed,) = result.stdout.splitlines()
    assert result.exit_code == 1
    assert printed.startswith(f"{tmp_path}/listener.yaml:{line}: trusted-id: ")
    assert " Why: " in printed
    assert " Mend: " in printed


def test_programs_get_an_array(tmp_path: Path) -> None:
    assert json.loads(run(tmp_path, "--json").stdout) == []
    result = run(tmp_path, "--json", listener=with_hole())
    (finding,) = json.loads(result.stdout)
    assert result.exit_code == 1
    assert finding.keys() == {"file", "line", "rule", "what", "why", "mend"}
    assert isinstance(finding["line"], int)


@pytest.mark.parametrize("arguments", [[], ["no-such.yaml"], ["."], ["--nothing"]])
def test_wrong_use_is_status_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(check_envoy, arguments).exit_code == 2


def test_without_its_extra_it_says_which_one_is_missing() -> None:
    program = "import sys; sys.modules['betterproto2'] = None\n"
    program += "from authz.cli import run; run()"
    command = [sys.executable, "-c", program, "check-envoy", __file__]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("authz: authz check-envoy needs the extra 'check'")


def test_a_kubernetes_object_is_passed_over_and_said_so(tmp_path: Path) -> None:
    result = run(tmp_path, kustomization=b"apiVersion: v1\nkind: Kustomization\n")
    assert result.exit_code == 0
    assert "kustomization.yaml: not for Envoy, passed over" in result.stderr


def test_without_envoy_the_rules_are_asked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("authz.local.envoy.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run(tmp_path)
    assert result.exit_code == 0
    assert "Envoy itself was not asked" in result.stderr


def test_what_only_envoy_sees_is_a_finding(tmp_path: Path) -> None:
    text = our_files()["listener.yaml"].decode()
    broken = text.replace("stat_prefix: gateway\n", 'stat_prefix: ""\n')
    result = run(tmp_path, listener=broken.encode())
    assert result.exit_code == 1
    assert "Envoy says: Proto constraint validation failed" in result.stdout


def test_one_static_file_passes_as_ours_do() -> None:
    """Platform teams may have all in one, without a reload."""
    files = {name: yaml.safe_load(text) for name, text in our_files().items()}
    whole = files["envoy.yaml"]
    del whole["dynamic_resources"]
    (listener,) = files["listener.yaml"]["resources"]
    manager = listener["filter_chains"][0]["filters"][-1]["typed_config"]
    del manager["rds"]
    (manager["route_config"],) = files["routes.yaml"]["resources"]
    del manager["route_config"]["@type"]
    resources = [listener, *files["clusters.yaml"]["resources"]]
    for resource in resources:
        del resource["@type"]
    whole["static_resources"]["listeners"].append(resources[0])
    whole["static_resources"]["clusters"] += resources[1:]
    text = yaml.safe_dump(whole).encode()
    assert found(text) == []
    assert validate(envoy_binary(), {"envoy.yaml": text}) == []


def with_tls(text: str) -> str:
    """Take the comment from the transport_socket of listener.yaml."""
    before, mark, after = text.partition("    # transport_socket:\n")
    commented, rest = after.split("    filters:\n", 1)
    socket = (mark + commented).replace("    # ", "    ")
    return f"{before}{socket}    filters:\n{rest}"


@pytest.mark.parametrize(
    ("name", "edits"),
    [
        (
            "listener.yaml",
            [("browsers\n          disabled: true", "browsers")],
        ),
        (
            "listener.yaml",
            [
                ("xff_num_trusted_hops: 0", "xff_num_trusted_hops: 1"),
                ("external_request_id: false", "external_request_id: true"),
            ],
        ),
        ("clusters.yaml", [("127.0.0.1, port_value: 11434", "any, port_value: 80")]),
        ("listener.yaml", [("address: 0.0.0.0", "address: 127.0.0.1")]),
        ("listener.yaml", [("path: /dev/stdout", "path: /dev/stderr")]),
        ("listener.yaml", [("request_timeout: 60s", "request_timeout: 900s")]),
        ("routes.yaml", [("timeout: 0s", "timeout: 1800s")]),
        (
            "listener.yaml",
            [
                (
                    "address.enforced, default_value: {numerator: 100",
                    "address.enforced, default_value: {numerator: 0",
                )
            ],
        ),
        (
            "listener.yaml",
            [
                ('"%START_TIME%"', '"%START_TIME(%Y-%m-%d)%"'),
                ('"%PROTOCOL%"', '"%REQ(USER-AGENT):99% 100%% %UPSTREAM_HOST%"'),
            ],
        ),
        (
            "listener.yaml",
            [('["accept"] = true,', '["accept"] = true, ["x-tenant"] = true,')],
        ),
    ],
)
def test_what_the_files_allow_to_be_changed_is_no_finding(
    name: str, edits: list[tuple[str, str]]
) -> None:
    text = our_files()[name].decode()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    assert check(our_files() | {name: text.encode()}).findings == []


def test_tls_is_no_finding_where_its_files_are_not() -> None:
    files = our_files()
    text = with_tls(files["listener.yaml"].decode())
    assert "\n    transport_socket:\n" in text
    files["listener.yaml"] = text.encode()
    assert check(files).findings == []
    assert validate(envoy_binary(), files) == []


def test_json_is_read_like_yaml() -> None:
    as_json = {
        name: json.dumps(yaml.safe_load(text), indent=1).encode()
        for name, text in our_files().items()
    }
    assert check(as_json).findings == []


@pytest.mark.parametrize("missing", NAMES)
def test_what_is_not_given_is_missed(missing: str) -> None:
    files = our_files()
    del files[missing]
    rules = {each.rule for each in check(files).findings}
    assert rules & {"not-given", "routes-unseen", "no-gateway", "unknown-cluster"}


def test_authz_may_be_reached_by_mutual_tls_that_checks_names() -> None:
    text = our_files()["clusters.yaml"].decode()
    remote = "socket_address: {address: authz.internal, port_value: 9001}"
    text = text.replace("pipe: {path: /run/authz/authz-0.sock}", remote)
    plain = check(our_files() | {"clusters.yaml": text.encode()}).findings
    assert {each.rule for each in plain} == {"authz-in-the-open"}
    over_tls = text.replace("  lb_policy: LEAST_REQUEST\n", TLS)
    assert check(our_files() | {"clusters.yaml": over_tls.encode()}).findings == []
    unnamed = over_tls.replace("match_typed_subject_alt_names", "crl: {}\n#")
    assert check(our_files() | {"clusters.yaml": unnamed.encode()}).findings


TLS_TYPE = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
TLS = f"""\
  transport_socket:
    name: envoy.transport_sockets.tls
    typed_config:
      "@type": type.googleapis.com/{TLS_TYPE}
      common_tls_context:
        tls_certificate_sds_secret_configs:
        - name: client
          sds_config: {{path_config_source: {{path: /etc/envoy/sds.yaml}}}}
        combined_validation_context:
          default_validation_context:
            match_typed_subject_alt_names:
            - {{san_type: DNS, matcher: {{exact: authz.internal}}}}
          validation_context_sds_secret_config:
            name: authority
            sds_config: {{path_config_source: {{path: /etc/envoy/sds.yaml}}}}
"""


@pytest.mark.parametrize(
    "place",
    [
        f"node: {{id: {KEY}}}",
        f"node: {{cluster: [{KEY}]}}",
        f"node: {{{KEY}: 1}}",
        f"{KEY}: 1",
        f'admin: {{address: {{pipe: {{path: a, mode: "{KEY}"}}}}}}',
        f"node: {{id: {KEY}\n",
        "static_resources: {secrets: [{name: s, generic_secret: {secret: "
        f"{{inline_string: {KEY}}}}}}}]}}",
    ],
)
def test_no_finding_shows_a_key(place: str) -> None:
    findings = found(place)
    assert findings
    assert KEY not in "".join(map(str, findings))


def test_envoys_own_words_show_no_key() -> None:
    text = our_files()["routes.yaml"].decode()
    broken = text.replace("regex: GET|HEAD", f"regex: '({KEY}'").encode()
    (finding,) = validate(envoy_binary(), our_files() | {"routes.yaml": broken})
    assert KEY not in str(finding)


_TYPE = "type.googleapis.com/envoy.extensions.filters"
REDIRECTING = {
    "@type": f"{_TYPE}.network.http_connection_manager.v3.HttpConnectionManager",
    "stat_prefix": "plain",
    "request_headers_timeout": "10s",
    "request_timeout": "10s",
    "route_config": {
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [
                    {"match": {"prefix": "/"}, "redirect": {"https_redirect": True}}
                ],
            }
        ]
    },
    "http_filters": [
        {"name": "router", "typed_config": {"@type": f"{_TYPE}.http.router.v3.Router"}}
    ],
}

LAUGHS = "a: &a [1, 1]\n" + "".join(
    f"{each}: &{each} [{', '.join(['*' + before] * 9)}]\n"
    for before, each in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        LAUGHS,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: " + "[" * 100_000,
        "a: " + "[" * 5_000 + "]" * 5_000,
        "\n".join(" " * depth + "a:" for depth in range(2_000)),
        "[a]: 1",
        "? {a: 1}\n: 1",
        "just text",
        "",
        "\0",
        b"\xff\xfe",
        b"# " + b"a" * 5_000_000,
        "a: !!python/object/apply:os.system [id]",
        "resources: {a: 1}",
        "resources: [1, null, {}, {'@type': 1}, {'@type': a/b}]",
        "resources: [{'@type': type.googleapis.com/os.path}]",
        "resources: [{'@type': type.googleapis.com/envoy.service.Any}]",
    ],
    ids=lambda content: content[:20],
)
def test_hostile_files_are_findings_and_end_soon(content: str | bytes) -> None:
    started = time.monotonic()
    assert found(content)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\r", "\ufeff"])
def test_a_break_that_envoy_does_not_see_hides_nothing(odd: str) -> None:
    text = our_files()["envoy.yaml"].decode()
    changed = text.replace("id: gateway", f"id: gateway # {odd}  any: any")
    files = our_files() | {"envoy.yaml": changed.encode()}
    assert [each.rule for each in check(files).findings] == ["yaml"]


def test_what_a_broken_file_holds_is_not_missed_as_well() -> None:
    files = our_files() | {"listener.yaml": b"resources: ["}
    assert [each.rule for each in check(files).findings] == ["yaml"]


def test_without_a_file_of_envoy_nothing_has_passed() -> None:
    (finding,) = found("apiVersion: v1\nkind: ConfigMap\ndata: {}")
    assert finding.rule == "no-gateway"


def test_a_door_that_only_leads_to_https_needs_no_rules_for_paths() -> None:
    door = {
        "name": "plain",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": REDIRECTING}]}],
    }
    document = yaml.safe_load(our_files()["envoy.yaml"])
    document["static_resources"]["listeners"].append(door)
    text = yaml.safe_dump(document).encode()
    assert check(our_files() | {"envoy.yaml": text}).findings == []


def test_scalars_are_read_as_envoy_reads_them() -> None:
    """A number to the base of 60, a date and a bare `y` differ between readers."""
    files = our_files()
    text = files["listener.yaml"].decode()
    for written, wrong in (("y", False), ("1:30", True), ("2001-01-01", True)):
        changed = text.replace("merge_slashes: true", f"merge_slashes: {written}")
        findings = check(files | {"listener.yaml": changed.encode()}).findings
        assert bool(findings) is wrong, written


def nodes(value: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 - what YAML holds
    """Return every member of a document with what it is in."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, member in list(members):
        found.append((value, key))
        if isinstance(member, dict | list):
            found += nodes(member)
    return found


ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    "",
    "a",
    "1s",
    [],
    {},
    [[]],
    {"a": {}},
    [None],
)


@given(seed=st.integers(0, 2**32), name=st.sampled_from(NAMES), edits=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_files_with_parts_missing_or_odd_crash_nothing(
    seed: int, name: str, edits: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test
    files = our_files()
    document = yaml.safe_load(files[name])
    for _ in range(edits):
        inside, key = chance.choice(nodes(document) or [(document, "a")])
        if chance.random() < 0.5:
            del inside[key]
        else:
            inside[key] = chance.choice(ODD)
    text = yaml.safe_dump(document).encode()
    for each in check(files | {name: text}).findings:
        assert each.file in files
        assert 1 <= each.line <= len((files | {name: text})[each.file].splitlines()) + 1


@given(st.text(alphabet=string.printable, max_size=200))
@settings(max_examples=30, deadline=None)
def test_any_text_crashes_nothing(text: str) -> None:
    for each in found(text):
        assert each.line >= 1
