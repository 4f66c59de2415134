"""Runs last: nothing that the whole run logged holds a key or another secret."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from authz.core.credential import mint
from tests import secrecy
from tests.raw import http1

if TYPE_CHECKING:
    import pytest

    from tests.gateway import Gateway
    from tests.upstream import RawUpstream

WRITTEN_WITHIN_S = 20  # Envoy writes its log once a second


async def ask_with(raw: Gateway[RawUpstream], key: str) -> str:
    """Show a key everywhere but in the path, which is logged; return the id."""
    request = (
        f"GET /nowhere?key={key} HTTP/1.1\r\nhost: {key}\r\nx-api-key: {key}\r\n"
        f"x-request-id: {key}\r\nuser-agent: {key}\r\nreferer: {key}\r\n\r\n"
    )
    answer = await http1(raw.port, request.encode())
    assert answer.status in {401, 404}, answer
    return answer.header("x-request-id") or ""


async def test_no_log_of_this_run_holds_a_key_a_password_or_a_pepper(
    raw: Gateway[RawUpstream], tmp_path_factory: pytest.TempPathFactory
) -> None:
    await ask_with(raw, mint(b"asked to find its way in".ljust(32)))
    last = await ask_with(raw, await raw.new_key())
    async with asyncio.timeout(WRITTEN_WITHIN_S):
        while True:
            if last in (raw.logs / "envoy.log").read_text():
                break
            await asyncio.sleep(0.05)
    logs = sorted(tmp_path_factory.getbasetemp().rglob("*.log"))
    assert {"authz.log", "envoy.log", "postgres.log"} <= {log.name for log in logs}
    assert secrecy.secrets
    for log in logs:
        assert not list(secrecy.leaks(log.read_bytes())), log
    for printed in secrecy.errors_printed:
        assert not list(secrecy.leaks(printed)), printed


def test_a_leak_would_be_found() -> None:
    key = mint(b"written down by mistake".ljust(32))
    secrecy.remember({"AUTHZ_CACHE_SECRET": "never to be seen"})
    text = f'{{"error": "{key}", "said": "never to be seen"}}'.encode()
    assert set(secrecy.leaks(text)) == {key.encode(), b"never to be seen"}
