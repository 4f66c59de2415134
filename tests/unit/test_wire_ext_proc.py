"""Our pruned external-processing messages are Envoy's wire, both ways."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.service.ext_proc import v3 as envoy
from google.protobuf.json_format import MessageToDict

from authz.core.allowlist import Allowlist
from authz.core.model import Allow, Key
from authz.edge.model_list import ModelLists
from authz.edge.translate import response_of
from authz.pb import external_auth_pb2
from authz.pb import external_processor_pb2 as pb
from tests.verdicts import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = b'{"models":[{"name":"a","model":"a"},{"name":"b","model":"b"}]}'
FROM_UPSTREAM = {"x-envoy-upstream-service-time": "1", "content-length": "62"}


def key(*patterns: str) -> Key:
    models = Allowlist(patterns)
    return replace(ROOT, id="key-id", owner="someone", models=models)


LIMITED = key("registry.ollama.ai/library/a:latest")


def said_by_check(key: Key, *, final: bool = True) -> dict[str, Any]:
    verdict = Allow(key, "/api/tags", None, final=final)
    response = external_auth_pb2.CheckResponse.FromString(response_of(verdict))
    return dict(MessageToDict(response.dynamic_metadata))


def messages(headers: dict[str, str], body: bytes) -> list[envoy.ProcessingRequest]:
    fields = [core.HeaderValue(key=k, raw_value=v.encode()) for k, v in headers.items()]
    return [
        envoy.ProcessingRequest(
            response_headers=envoy.HttpHeaders(headers=core.HeaderMap(headers=fields))
        ),
        envoy.ProcessingRequest(
            response_body=envoy.HttpBody(body=body, end_of_stream=True)
        ),
    ]


async def processed(
    headers: dict[str, str],
    body: bytes = BODY,
    key: Key = LIMITED,
    lists: ModelLists | None = None,
) -> list[dict[str, Any]]:
    """Send Envoy's messages through ModelLists; returns what Envoy reads."""

    async def sent() -> AsyncIterator[pb.ProcessingRequest]:
        for message in messages(headers, body):
            ours = pb.ProcessingRequest.FromString(bytes(message))
            said = ours.metadata_context.filter_metadata["envoy.filters.http.ext_authz"]
            said.update(said_by_check(key))
            yield ours

    return [
        envoy.ProcessingResponse.parse(answer.SerializeToString()).to_dict()
        async for answer in (lists or ModelLists()).process(sent(), None)
    ]


async def test_a_list_is_cut_and_its_length_goes() -> None:
    headers, body = await processed({":status": "200"} | FROM_UPSTREAM)
    mutation = headers["responseHeaders"]["response"]["headerMutation"]
    assert mutation["removeHeaders"] == ["content-length"]
    assert fields_set(mutation) == {"content-type": "application/json"}
    cut = b64encode(b'{"models":[{"name":"a","model":"a"}]}').decode()
    assert body == {"responseBody": {"response": {"bodyMutation": {"body": cut}}}}


def fields_set(mutation: dict[str, Any]) -> dict[str, str]:
    options = mutation["setHeaders"]
    appended = {option["appendAction"] for option in options}
    assert appended == {"OVERWRITE_IF_EXISTS_OR_ADD"}
    fields = [option["header"] for option in options]
    return {field["key"]: b64decode(field["rawValue"]).decode() for field in fields}


async def test_what_cannot_be_read_becomes_an_error_without_a_body() -> None:
    _, body = await processed({":status": "200"} | FROM_UPSTREAM, b"{")
    failed = body["responseBody"]["response"]
    assert failed["bodyMutation"] == {"body": ""}
    assert fields_set(failed["headerMutation"]) == {":status": "502"}


async def test_no_list_is_cut_beyond_its_time() -> None:
    late = ModelLists(longest_s=0)
    _, body = await processed({":status": "200"} | FROM_UPSTREAM, lists=late)
    failed = body["responseBody"]["response"]
    assert failed["bodyMutation"] == {"body": ""}
    assert fields_set(failed["headerMutation"]) == {":status": "503"}


@pytest.mark.parametrize(
    "headers",
    [{":status": "500"} | FROM_UPSTREAM, {":status": "403"}, {":status": "200"}],
)
async def test_errors_and_our_own_answers_are_left_alone(
    headers: dict[str, str],
) -> None:
    assert await processed(headers) == [
        {"responseHeaders": {"response": {}}},
        {"responseBody": {"response": {}}},
    ]


def test_check_says_what_a_list_may_show() -> None:
    said = said_by_check(LIMITED)
    assert said["key_id"] == "key-id"
    assert said["endpoint"] == "/api/tags"
    assert said["models"] == ["registry.ollama.ai/library/a:latest"]
    assert said_by_check(key("h/n/m:t", "*"))["models"] == ["*"]


def test_keys_with_one_id_but_other_models_do_not_share_a_list() -> None:
    changed = replace(LIMITED, models=Allowlist(("h/n/m:t",)))
    assert said_by_check(LIMITED)["models"] != said_by_check(changed)["models"]


def test_other_verdicts_carry_no_patterns() -> None:
    assert "models" not in said_by_check(LIMITED, final=False)
    chat = response_of(Allow(LIMITED, "/api/chat", "h/n/m:t"))
    response = external_auth_pb2.CheckResponse.FromString(chat)
    assert "models" not in MessageToDict(response.dynamic_metadata)
