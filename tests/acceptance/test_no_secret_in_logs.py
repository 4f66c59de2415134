"""Nothing that a whole run logs holds a key or another secret.

The fixture `nothing_leaks` looks, in each process of the tests, when it has ended
everything else. Here is the worst that it may find, and the proof that it would.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

from authz.core.credential import mint
from authz.local.process import private_directory
from tests import secrecy
from tests.raw import http1

if TYPE_CHECKING:
    import pytest

    from tests.gateway import Gateway
    from tests.upstream import RawUpstream

WRITTEN_WITHIN_S = 20  # Envoy writes its log once a second
LOGGING_TEST = """
def test_that_passes(tmp_path):
    (tmp_path / "authz.log").write_text({text!r})
"""


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
    everywhere = tmp_path_factory.getbasetemp()
    names = {log.name for log in secrecy.logs_below(everywhere)}
    assert {"authz.log", "envoy.log", "postgres.log"} <= names
    assert secrecy.secrets
    secrecy.assert_nothing_leaked(everywhere)


def test_a_leak_would_be_found() -> None:
    key = mint(b"written down by mistake".ljust(32))
    secrecy.remember({"AUTHZ_CACHE_SECRET": "never to be seen"})
    text = f'{{"error": "{key}", "said": "never to be seen"}}'.encode()
    assert set(secrecy.leaks(text)) == {key.encode(), b"never to be seen"}


def test_a_leak_in_any_process_fails_the_whole_run() -> None:
    key = mint(b"logged by mistake".ljust(32))
    # Not in our own folder: there, it would fail this run.
    with private_directory("authz-leak-") as folder:
        (folder / "test_leak.py").write_text(LOGGING_TEST.format(text=key))
        ended = subprocess.run(
            (
                *(sys.executable, "-m", "pytest", "-p", "tests.conftest"),
                *("-n", "1", f"--basetemp={folder / 'run'}"),
            ),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1, ended
    assert "1 passed, 1 error" in ended.stdout
    assert "a secret is in" in ended.stdout
