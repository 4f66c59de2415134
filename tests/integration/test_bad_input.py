"""Hostile requests get their row of the error table; bad settings get one line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest

from authz.core.credential import mint
from authz.pb import external_auth_pb2 as pb
from tests import programs
from tests.acceptance.test_auth_flow import CHAT, assert_error, bearer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway import Gateway, Standin

LIMIT = 16 * 1024 * 1024


@pytest.fixture
async def client(gateway: Gateway[Standin]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        yield client


def padded(size: int) -> bytes:
    start, end = b'{"model":"llama3.1","stream":false,"prompt":"', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"model":"llama3.1"',
        b'{"model":"llama3.1","prompt":"\xff\xfe"}',
        b"[" * 100_000,
        b'{"model":"llama3.1","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"llama3.1","x":' + b"9" * 100_000 + b"}",
    ],
)
async def test_a_body_that_is_no_strict_json_is_a_400(
    client: httpx.AsyncClient, gateway: Gateway[Standin], body: bytes
) -> None:
    key = await gateway.new_key()
    answer = await client.post("/api/generate", content=body, headers=bearer(key))
    assert_error(answer, 400, "invalid_request")
    assert await gateway.upstream.received() == []
    answer = await client.post("/api/chat", json=CHAT, headers=bearer(key))
    assert answer.status_code == 200


async def test_a_body_of_16_mib_passes_and_one_byte_more_is_too_large(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    key = bearer(await gateway.new_key())
    answer = await client.post("/api/generate", content=padded(LIMIT), headers=key)
    assert answer.status_code == 200
    (received,) = await gateway.upstream.received()
    assert received["size"] == LIMIT
    answer = await client.post("/api/generate", content=padded(LIMIT + 1), headers=key)
    assert_error(answer, 413, "payload_too_large")


async def test_a_body_in_chunks_of_unknown_length_passes(
    client: httpx.AsyncClient, gateway: Gateway[Standin]
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"model":"llama3.1",'
        yield b'"stream":false,"prompt":"x"}'

    key = bearer(await gateway.new_key())
    answer = await client.post("/api/generate", content=chunks(), headers=key)
    assert answer.status_code == 200


async def test_a_stranger_with_a_large_body_is_told_401_before_it_is_sent(
    gateway: Gateway[Standin],
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    unknown = mint(b"never issued".ljust(32))
    writer.write(
        b"POST /api/generate HTTP/1.1\r\nhost: x\r\n"
        b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
        % (unknown.encode(), LIMIT + 1)
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()
    await writer.wait_closed()


async def test_a_header_of_junk_is_a_401(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/chat", json=CHAT, headers=bearer("j" * 8192))
    assert_error(answer, 401, "unauthorized")


async def test_headers_without_end_are_a_431(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/chat", json=CHAT, headers=bearer("j" * 100_000))
    assert_error(answer, 431, "headers_too_large")


async def test_the_service_survives_a_message_that_is_none(
    gateway: Gateway[Standin],
) -> None:
    socket = f"unix:{gateway.run}/authz-0.sock"
    async with grpc.aio.insecure_channel(socket) as channel:
        check: Any = channel.unary_unary(
            "/envoy.service.auth.v3.Authorization/Check",
            response_deserializer=pb.CheckResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await check(b"\xff\xff\xff")
        denied = await check(pb.CheckRequest().SerializeToString())
    assert denied.denied_response.status.code == 401


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("&sslrootcert={none}", "sslrootcert: cannot read {none}: No such file"),
        ("&sslrootcert={text}", "sslrootcert: no certificate in {text}"),
        ("", "this sslmode needs an sslrootcert"),
    ],
)
async def test_a_root_of_postgresql_that_cannot_be_used_ends_the_service(
    tmp_path: Path, option: str, named: str, workers: int
) -> None:
    places = {"none": str(tmp_path / "none"), "text": __file__}
    query = f"sslmode=verify-full{option.format(**places)}"
    url = f"postgresql://user:hunter2@127.0.0.1:1/db?{query}"
    ended = await serve_with(tmp_path, url, workers=workers)
    assert_says(ended, f"AUTHZ_DATABASE_URL: {named.format(**places)}", workers)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("ssl_ca_certs={none}", "ssl_ca_certs: cannot read {none}: No such file"),
        ("ssl_ca_certs={text}", "ssl_ca_certs: no certificate in {text}"),
        ("ssl_certfile={text}", "ssl_certfile: no certificate with its key in {text}"),
    ],
)
async def test_a_root_of_redis_that_cannot_be_used_ends_the_service(
    tmp_path: Path, database_url: str, option: str, named: str, workers: int
) -> None:
    places = {"none": str(tmp_path / "none"), "text": __file__}
    redis = f"rediss://user:hunter2@127.0.0.1:1?{option.format(**places)}"
    ended = await serve_with(tmp_path, database_url, redis, workers=workers)
    assert_says(ended, f"AUTHZ_REDIS_URL: {named.format(**places)}", workers)


async def serve_with(
    folder: Path, database_url: str, redis_url: str = "", *, workers: int
) -> programs.Ended:
    settings = {
        "AUTHZ_DATABASE_URL": database_url,
        "AUTHZ_REDIS_URL": redis_url,
        "AUTHZ_CACHE_SECRET": "s" * 32,
        "AUTHZ_LISTEN": str(folder),
        "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
        "AUTHZ_WORKERS": str(workers),
        "HOME": str(folder),  # no certificates of whoever runs the tests
    }
    return await programs.authz("serve", cwd=folder, env=settings)


def assert_says(ended: programs.Ended, named: str, workers: int) -> None:
    """One line says what is wrong; of several workers, each and their supervisor."""
    assert ended.status == 2, ended
    lines = ended.err.splitlines()
    assert lines[0].startswith(f"authz: {named}")
    assert len(lines) <= (1 if workers == 1 else workers + 1)
    assert "hunter2" not in ended.err
