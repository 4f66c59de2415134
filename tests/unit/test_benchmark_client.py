"""The client that asks evenly in time, and what it must not hide."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.bodies import SIZES, body_of
from benchmarks.wrk import Load, LoadFailed, Target, measure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
NO = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def server(
    answers: list[bytes], pause_s: float = 0
) -> AsyncIterator[tuple[int, list[str]]]:
    """Answer by script, then by 200; note the keys. Pause before the first answer."""
    keys: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(2)
            keys.append(head.partition(b"Bearer ")[2].split()[0].decode())
            if len(keys) == 1:
                await asyncio.sleep(pause_s)
            writer.write(answers.pop(0) if answers else OK)

    async def until_left(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_server(until_left, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1], keys


async def ask(folder: Path, port: int, *numbers: str) -> dict[str, Any]:
    """Run the client as `make bench` does: KEY CONNECTIONS PER_S SECONDS."""
    (folder / "body").write_text("{}")
    command = (sys.executable, "-m", "benchmarks.steady", "/x", str(port), *numbers)
    client = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await client.communicate()
    found: dict[str, Any] = json.loads(said)
    return found


async def test_requests_that_wait_for_a_slow_answer_are_late(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\n")
    async with server([], pause_s=0.4) as (port, _):
        result = await ask(tmp_path, port, "0", "1", "20", "0.5")
    assert result["failed"] == 0
    assert result["p50_us"] > 100_000


async def test_what_cannot_be_sent_in_time_is_late_and_not_forgotten(
    tmp_path: Path,
) -> None:
    (tmp_path / "keys").write_text("one\n")
    async with server([], pause_s=1) as (port, keys):
        result = await ask(tmp_path, port, "0", "1", "20", "0.5")
    assert (result["requests"], result["failed"], len(keys)) == (1, 0, 1)
    assert result["p50_us"] > 200_000


async def test_an_answer_other_than_200_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\n")
    async with server([OK, NO]) as (port, _):
        result = await ask(tmp_path, port, "0", "1", "20", "0.2")
    assert (result["requests"], result["failed"]) == (4, 1)


async def test_each_of_many_keys_is_asked_with_once_from_a_line_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "keys").write_text("".join(f"key-{n}\n" for n in range(9)))
    async with server([]) as (port, keys):
        await ask(tmp_path, port, "3", "1", "20", "0.2")
    assert keys == ["key-3", "key-4", "key-5", "key-6"]


@pytest.mark.parametrize(
    ("keys", "answers"), [(60, [NO]), (3, [])], ids=["a failure", "no more keys"]
)
async def test_a_sample_that_fails_has_used_up_its_keys(
    tmp_path: Path, keys: int, answers: list[bytes]
) -> None:
    """Taken again with the same keys, a cold sample would be warm."""
    (tmp_path / "keys").write_text("".join(f"key-{n}\n" for n in range(keys)))
    (tmp_path / "body").write_text("{}")
    async with server(answers) as (port, asked):
        target = Target(port, tmp_path, "/x")
        with pytest.raises(LoadFailed):
            await measure(target, Load(connections=1, seconds=1, per_s=20))
    assert target.next_key >= 20
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("size", SIZES)
def test_a_body_has_its_size_and_is_a_chat(size: int) -> None:
    body = body_of(size)
    assert len(body) == size
    assert json.loads(body)["model"] == "llama3.1"
