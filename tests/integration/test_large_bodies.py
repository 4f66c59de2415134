"""Large bodies are read in a process of their own, exactly and in time."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from authz.adapters.body_process import body_process
from authz.authorizer import Authorizer
from authz.core.credential import Peppers
from authz.core.decide import read_asked
from authz.core.endpoints import ENDPOINTS
from authz.core.model import Allow, Asked, Deny, Request
from authz.errors import BackendError
from authz.issuing import issue
from authz.lookup import Freshness, Lookup
from authz.metrics import Metrics
from tests.fakes import FakeClock, MemoryKeys, own_limiter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from authz.adapters.body_process import BodyProcess

MIB = 1024 * 1024
KEY_ID = "one key"
PAD = b"x" * 70_000
GOOD = b'{"model":"llama3.1","prompt":"%b"}' % PAD
READ = ("registry.ollama.ai/library/llama3.1:latest",)


@pytest.fixture
async def reader() -> AsyncIterator[BodyProcess]:
    async with body_process() as reader:
        yield reader


def asking(body: bytes, path: str = "/api/generate", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("POST", path, named, body)


def models_of(answer: Asked | Deny) -> tuple[str, ...]:
    assert isinstance(answer, Asked)
    return answer.models


def pid_of(reader: BodyProcess) -> int:
    assert reader.pid is not None
    return reader.pid


def memory_of(reader: BodyProcess, what: str) -> int:
    status = Path(f"/proc/{pid_of(reader)}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize(
    "request_",
    [
        asking(GOOD),
        asking(GOOD, content_length=str(len(GOOD))),
        asking(GOOD, content_length="1"),
        asking(GOOD, content_encoding="gzip"),
        asking(GOOD, content_type="multipart/form-data"),
        asking(GOOD, "/api/create"),
        asking(GOOD.replace(b"prompt", b"from", 1), "/api/create"),
        asking(
            b'{"source":"a","destination":"b","insecure":true,"x":"%b"}' % PAD,
            "/api/copy",
        ),
        asking(GOOD, x_note="\u00fc\u2028\U0001f600"),
        asking(GOOD[:-1]),
        asking(GOOD + b"{}"),
        asking(GOOD.replace(b"x", b"\xff", 1)),
        asking(GOOD.replace(b"x", "\U0001f600".encode(), 1)),
        asking(GOOD.replace(b"prompt", b"Model", 1)),
        asking(GOOD.replace(b"prompt", b"model", 1)),
        asking(GOOD.replace(b"llama3.1", b"", 1)),
        asking(GOOD.replace(b"llama3.1", b"a b", 1)),
        asking(b'{"model":"a","name":"b","x":"%b"}' % PAD, "/api/show"),
        asking(b"[" * 100_000),
        asking(b"[%b1]" % (b"{}," * 600_000)),
        asking(b'{"x":%b1}' % (b"9" * 70_000)),
        asking(b"\0" * 70_000),
        asking(GOOD.replace(b"x", "\u00e9\\u001b".encode(), 1)),
        asking('{"model":"a","x":{"\u00e9":1},"y":"\\u001b%b"}'.encode() % PAD),
        asking('{"model":"a","x":{"\u00e9":1,"\\u00e9":2},"y":"%b"}'.encode() % PAD),
    ],
)
async def test_the_process_says_what_the_worker_would_say(
    reader: BodyProcess, request_: Request
) -> None:
    here = read_asked(ENDPOINTS[request_.path], request_)
    assert await reader.read(KEY_ID, request_) == here


async def test_the_largest_body_is_read(reader: BodyProcess) -> None:
    assert (
        models_of(await reader.read(KEY_ID, asking(GOOD.replace(PAD, b"x" * 16 * MIB))))
        == READ
    )


async def test_bodies_that_come_together_get_their_own_answers(
    reader: BodyProcess,
) -> None:
    names = [f"model{n}" for n in range(8)]
    bodies = [GOOD.replace(b"llama3.1", name.encode()) for name in names]
    answers = await asyncio.gather(
        *(reader.read(KEY_ID, asking(body)) for body in bodies)
    )
    assert [models_of(answer) for answer in answers] == [
        (f"registry.ollama.ai/library/{name}:latest",) for name in names
    ]


async def test_a_process_that_is_killed_is_an_error_and_then_replaced(
    reader: BodyProcess,
) -> None:
    await reader.read(KEY_ID, asking(GOOD))
    killed = pid_of(reader)
    os.kill(killed, signal.SIGSTOP)
    reading = asyncio.create_task(reader.read(KEY_ID, asking(GOOD)))
    await asyncio.sleep(0)  # it has begun
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(BackendError):
        await reading
    assert models_of(await reader.read(KEY_ID, asking(GOOD))) == READ
    assert pid_of(reader) != killed


async def test_a_body_that_takes_too_long_is_an_error_in_time(
    reader: BodyProcess,
) -> None:
    await reader.read(KEY_ID, asking(GOOD))
    os.kill(pid_of(reader), signal.SIGSTOP)
    async with asyncio.timeout(2):  # Envoy's patience
        with pytest.raises(BackendError):
            await reader.read(KEY_ID, asking(GOOD))
    assert models_of(await reader.read(KEY_ID, asking(GOOD))) == READ


async def test_a_client_that_leaves_does_not_spoil_the_next_answer(
    reader: BodyProcess,
) -> None:
    await reader.read(KEY_ID, asking(GOOD))
    os.kill(pid_of(reader), signal.SIGSTOP)
    left = asyncio.create_task(
        reader.read(KEY_ID, asking(GOOD.replace(b"llama", b"other")))
    )
    await asyncio.sleep(0)  # it has begun
    left.cancel()
    with suppress(asyncio.CancelledError):
        await left
    assert models_of(await reader.read(KEY_ID, asking(GOOD))) == READ


async def test_more_than_64_mib_at_once_are_refused_without_waiting(
    reader: BodyProcess,
) -> None:
    await reader.read(KEY_ID, asking(GOOD))
    os.kill(pid_of(reader), signal.SIGSTOP)
    large = asking(bytes(16 * MIB))
    waiting = [asyncio.create_task(reader.read(str(n), large)) for n in range(4)]
    await asyncio.sleep(0)  # they have begun
    with pytest.raises(BackendError, match="too many large bodies"):
        await reader.read(KEY_ID, large)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert models_of(await reader.read(KEY_ID, asking(GOOD))) == READ


async def test_a_key_with_many_bodies_delays_another_by_one_of_them(
    reader: BodyProcess,
) -> None:
    flood = [asyncio.create_task(reader.read(KEY_ID, asking(GOOD))) for _ in range(50)]
    await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
    assert models_of(await reader.read("another key", asking(GOOD))) == READ
    assert not all(task.done() for task in flood)
    await asyncio.gather(*flood, return_exceptions=True)


async def test_one_key_cannot_fill_the_queue_of_all(reader: BodyProcess) -> None:
    large = asking(GOOD.replace(PAD, b"x" * 15 * MIB))
    waiting = [asyncio.create_task(reader.read(KEY_ID, large)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(BackendError):
        await reader.read(KEY_ID, large)
    assert models_of(await reader.read("another key", asking(GOOD))) == READ
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_small_check_is_answered_while_a_large_one_hangs(
    reader: BodyProcess,
) -> None:
    await reader.read(KEY_ID, asking(GOOD))
    os.kill(pid_of(reader), signal.SIGSTOP)
    authorizer, key = await authorizer_with_key(reader)
    large = asyncio.create_task(authorizer.authorize(asking(GOOD, x_api_key=key)))
    await asyncio.sleep(0)  # it has begun
    small = asking(b'{"model":"llama3.1"}', x_api_key=key)
    assert isinstance(await authorizer.authorize(small), Allow)
    assert not large.done()
    os.kill(pid_of(reader), signal.SIGCONT)
    assert isinstance(await large, Allow)


async def test_the_process_gets_none_of_the_settings(
    reader: BodyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHZ_CACHE_SECRET", "a secret")
    monkeypatch.setenv("PGPASSWORD", "a secret")
    await reader.read(KEY_ID, asking(GOOD))
    environment = Path(f"/proc/{pid_of(reader)}/environ").read_bytes()
    assert b"secret" not in environment


@pytest.mark.parametrize(
    "text",
    [b"x", "\U0001f600x".encode(), "\u4e2d".encode(), b"\\n", b"\\u4e2d"],
    ids=["ascii", "emoji", "chinese", "escapes", "escaped chinese"],
)
async def test_a_large_text_takes_three_times_its_size_to_read(
    reader: BodyProcess, text: bytes
) -> None:
    await reader.read(KEY_ID, asking(GOOD))
    before = memory_of(reader, "VmRSS")
    Path(f"/proc/{pid_of(reader)}/clear_refs").write_text("5")  # the peak: from now
    body = GOOD.replace(PAD, text * (10 * MIB // len(text)))
    assert models_of(await reader.read(KEY_ID, asking(body))) == READ
    # And a view of the message that it came in is all that the worker has of it.
    assert memory_of(reader, "VmHWM") - before < 3.1 * len(body)


async def test_the_process_ends_with_its_reader() -> None:
    async with body_process() as reader:
        await reader.read(KEY_ID, asking(GOOD))
        pid = pid_of(reader)
        os.kill(pid, signal.SIGSTOP)
    assert reader.pid is None
    assert not Path(f"/proc/{pid}").exists()


def test_the_process_ends_when_its_worker_is_killed() -> None:
    command = (sys.executable, "-m", "tests.integration.test_large_bodies")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        process = os.pidfd_open(int(worker.stdout.readline()))
        worker.kill()
    ended, _, _ = select.select([process], [], [], 10)
    os.close(process)
    assert ended == [process]


async def be_a_worker() -> None:
    async with body_process() as reader:
        await reader.read(KEY_ID, asking(GOOD))
        print(reader.pid, flush=True)  # noqa: T201 - what the test waits for
        await asyncio.Event().wait()


async def authorizer_with_key(reader: BodyProcess) -> tuple[Authorizer, str]:
    new, key = issue("a", models=["*"], scopes=["inference"], expires_at=None)
    keys, clock, hour = MemoryKeys(), FakeClock(), timedelta(hours=1)
    await keys.create(new)
    metrics = Metrics(CollectorRegistry())
    lookup = Lookup(
        keys, None, Freshness(hour, hour, size=10, misses_per_s=10), clock, metrics
    )
    return Authorizer(lookup, Peppers(), clock, reader, own_limiter(clock)), key


if __name__ == "__main__":
    asyncio.run(be_a_worker())
