"""Our pruned messages are Envoy's wire: a second implementation agrees both ways."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from envoy_data_plane.envoy.config.core.v3 import Address, SocketAddress
from envoy_data_plane.envoy.service.auth import v3 as envoy
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from authz.core.model import CODES, Allow, Code, Deny, Reason, Request
from authz.edge.translate import request_of, response_of
from authz.pb import external_auth_pb2 as pb
from tests import verdicts

ROOT = Path(__file__).parents[2]
KEY = replace(verdicts.ROOT, id="key-id", owner="someone")


def test_the_generated_code_is_that_of_the_protos(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"]
        + [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
        + [str(proto) for proto in (ROOT / "protos").rglob("*.proto")],
        check=True,
        cwd=ROOT,
    )
    generated = sorted(tmp_path.rglob("*_pb2.py*"))
    assert generated
    for file in generated:
        assert (ROOT / file.relative_to(tmp_path)).read_text() == file.read_text()


def check_request(phase: str | None = None, body: bytes = b"{\xff}") -> bytes:
    return bytes(
        envoy.CheckRequest(
            attributes=envoy.AttributeContext(
                context_extensions={"phase": phase} if phase else {},
                source=envoy.AttributeContextPeer(
                    address=Address(
                        socket_address=SocketAddress(
                            address="192.0.2.1", port_value=50_000
                        )
                    )
                ),
                request=envoy.AttributeContextRequest(
                    http=envoy.AttributeContextHttpRequest(
                        id="7",
                        method="POST",
                        path="/api/chat",
                        host="localhost",
                        protocol="HTTP/2",
                        size=3,
                        headers={"x-api-key": "k", "content-length": "3"},
                        raw_body=body,
                    )
                ),
            )
        )
    )


def test_we_read_what_envoy_writes() -> None:
    request = request_of(check_request())
    assert request.method == "POST"
    assert request.path == "/api/chat"
    assert request.headers == {"x-api-key": "k", "content-length": "3"}
    assert request.body == b"{\xff}"
    assert not request.headers_only
    assert request.source == "192.0.2.1"


def test_a_request_that_is_printed_shows_no_header_and_no_body() -> None:
    shown = repr(Request("GET", "/", {"x-api-key": "secret"}, b"secret"))
    assert "secret" not in shown


def test_the_source_is_the_client_that_envoy_finds_behind_trusted_proxies() -> None:
    http = pb.AttributeContext.HttpRequest(
        headers={"x-envoy-external-address": "2001:db8::1"}
    )
    message = pb.CheckRequest.FromString(check_request())
    message.attributes.request.http.MergeFrom(http)
    assert request_of(message.SerializeToString()).source == "2001:db8::1"


def test_a_large_body_is_read_where_it_stands() -> None:
    body = bytes(range(256)) * 4 * 4096
    message = check_request("headers", body)
    tracemalloc.start()
    request = request_of(message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(body) / 10
    assert request == request_of(check_request("headers"))._replace(body=body)


@pytest.mark.parametrize("cut", [1, 1000, 100_000])
def test_a_large_message_that_breaks_off_is_an_error(cut: int) -> None:
    with pytest.raises(ValueError, match="CheckRequest"):
        request_of(check_request(body=b"x" * 200_000)[:-cut])


@given(st.binary(max_size=50), st.integers(0, 200))
def test_whatever_comes_in_a_large_message_is_read_or_an_error(
    odd: bytes, at: int
) -> None:
    message = check_request(body=b"x" * 70_000)
    with suppress(ValueError, DecodeError):
        request_of(message[:at] + odd + message[at:])


def test_the_check_before_the_body_is_told_by_the_route() -> None:
    request = request_of(check_request("headers"))
    assert request.headers_only


def test_an_empty_check_request_is_an_empty_request() -> None:
    request = request_of(b"")
    assert (request.method, request.path, request.headers) == ("", "", {})


def test_envoy_reads_an_allowed_verdict() -> None:
    verdict = Allow(KEY, "/api/chat", "h/n/m:t")
    response = envoy.CheckResponse.parse(response_of(verdict))
    assert response.status is not None
    assert response.status.code == 0
    assert response.denied_response is None
    assert response.ok_response is not None
    assert response.ok_response.headers_to_remove == ["authorization", "x-api-key"]
    assert metadata(response_of(verdict)) == {
        "key_id": "key-id",
        "owner": "someone",
        "endpoint": "/api/chat",
        "model": "h/n/m:t",
    }


def test_what_an_input_was_taken_for_is_told_beside_the_rest() -> None:
    verdict = Allow(KEY, "/api/chat", "h/n/m:t")
    told = metadata(response_of(verdict._replace(input_estimate=1011)))
    assert told == {**metadata(response_of(verdict)), "input_estimate": 1011}


def test_the_first_of_two_checks_keeps_the_credential_for_the_second() -> None:
    verdict = Allow(KEY, "/api/chat", None, final=False)
    response = envoy.CheckResponse.parse(response_of(verdict))
    assert response.ok_response is not None
    assert response.ok_response.headers_to_remove == []


@pytest.mark.parametrize("reason", Reason)
def test_envoy_reads_every_denial(reason: Reason) -> None:
    deny = Deny(reason, ("GET", "HEAD"))
    response = envoy.CheckResponse.parse(response_of(deny))
    assert response.status is not None
    assert response.status.code != 0
    assert response.denied_response is not None
    assert response.denied_response.status is not None
    assert response.denied_response.status.code == CODES[reason].status
    assert metadata(response_of(deny)) == {
        "code": CODES[reason].code,
        "message": CODES[reason].message,
        "reason": reason.value,
    }


def headers_of(reason: Reason) -> dict[str, str]:
    response = envoy.CheckResponse.parse(response_of(Deny(reason, ("GET", "HEAD"))))
    assert response.denied_response is not None
    return {
        option.header.key: option.header.value
        for option in response.denied_response.headers
        if option.header
    }


def test_every_401_has_the_same_headers() -> None:
    challenge = {"x-should-retry": "false", "www-authenticate": 'Bearer realm="api"'}
    for reason in Reason:
        if CODES[reason] is Code.UNAUTHORIZED:
            assert headers_of(reason) == challenge


def test_a_denial_carries_the_headers_of_its_row() -> None:
    assert headers_of(Reason.METHOD_UNKNOWN)["allow"] == "GET, HEAD"
    assert headers_of(Reason.UNDECIDED) == {"retry-after": "1"}
    assert headers_of(Reason.MODEL_NOT_LISTED) == {"x-should-retry": "false"}
    assert "insufficient_scope" in headers_of(Reason.SCOPE_MISSING)["www-authenticate"]


def test_keys_of_one_owner_do_not_share_a_verdict() -> None:
    other = replace(KEY, id="other")
    first, second = (Allow(key, "/api/chat", "h/n/m:t") for key in (KEY, other))
    assert metadata(response_of(first))["key_id"] == "key-id"
    assert metadata(response_of(second))["key_id"] == "other"


def metadata(response: bytes) -> dict[str, str]:
    parsed = pb.CheckResponse.FromString(response)
    return dict(MessageToDict(parsed.dynamic_metadata))
