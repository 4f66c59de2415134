"""Commands of several callers, sent together: each has its own answer."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from hiredis import Reader
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import ResponseError

from authz.adapters.redis_batches import RedisBatches
from authz.errors import CacheUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis.asyncio import Redis

    Command = tuple[str | int, ...]


@dataclass
class OneServer:
    """What RedisBatches needs of a client; it echoes, when the gate is open."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    prompt: tuple[Command, ...] = ()  # is answered also while the gate is closed
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    batches: list[list[Command]] = field(default_factory=list)
    broken: bool = False
    error: Exception | None = None
    lent: int = 0

    @property
    def connection_pool(self) -> OneServer:
        return self

    async def get_connection(self) -> Connection:
        self.lent += 1
        return Connection(self)

    async def release(self, _connection: Connection) -> None:
        self.lent -= 1


@dataclass
class Connection:
    server: OneServer
    unread: list[Command] = field(default_factory=list)

    async def send_packed_command(self, packed: list[bytes]) -> None:
        # As many as came: each reads as an array of texts.
        reader = Reader(encoding="utf-8")
        reader.feed(b"".join(packed))
        commands = [tuple(reader.gets()) for _ in packed]
        self.server.batches.append(commands)
        self.unread += commands
        self.server.asked.set()

    async def read_response(self) -> Command:
        if self.unread[0] not in self.server.prompt:
            await self.server.gate.wait()
        if self.server.broken:
            raise NoConnectionError
        if self.server.error:
            raise self.server.error
        command = self.unread.pop(0)
        if command == ("WRONG",):
            msg = "no"
            raise ResponseError(msg)
        return command


def asking(server: OneServer, *commands: str) -> list[asyncio.Task[Any]]:
    """Ask for one command, and for the others while that is under way."""
    batches = RedisBatches(cast("Redis", server))
    return [asyncio.create_task(batches.run(command)) for command in commands]


async def under_way(server: OneServer) -> None:
    await asyncio.wait_for(server.asked.wait(), 10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneServer]:
    monkeypatch.setattr("authz.adapters.redis_batches._PATIENCE_S", 3600)
    found = OneServer()
    yield found
    assert found.lent == 0


async def test_a_lone_command_waits_for_nobody(server: OneServer) -> None:
    server.gate.set()
    (answer,) = asking(server, "a")
    assert await answer == ("a",)
    assert server.batches == [[("a",)]]


async def test_what_comes_meanwhile_goes_together(server: OneServer) -> None:
    batches = RedisBatches(cast("Redis", server))
    first = asyncio.create_task(batches.run("a"))
    await under_way(server)
    rest = [asyncio.create_task(batches.run(name)) for name in "bcd"]
    await asyncio.sleep(0)
    server.gate.set()
    assert await asyncio.gather(first, *rest) == [("a",), ("b",), ("c",), ("d",)]
    assert server.batches == [[("a",)], [("b",), ("c",), ("d",)]]


async def test_an_answer_that_is_late_is_not_waited_for(
    server: OneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("authz.adapters.redis_batches._PATIENCE_S", 0)
    server.prompt = (("b",),)
    batches = RedisBatches(cast("Redis", server))
    late = asyncio.create_task(batches.run("a"))
    await under_way(server)
    assert await batches.run("b") == ("b",)
    server.gate.set()
    assert await late == ("a",)


async def test_a_crowd_does_not_wait_for_its_first(server: OneServer) -> None:
    batches = RedisBatches(cast("Redis", server))
    names = [f"{number}" for number in range(1000)]
    server.prompt = tuple((name,) for name in names[64:])
    asked = [asyncio.create_task(batches.run(name)) for name in names]
    for name, answer in list(zip(names, asked, strict=True))[64:]:
        assert await answer == (name,)
    server.gate.set()
    assert await asyncio.gather(*asked[:64]) == [(name,) for name in names[:64]]


async def test_a_batch_has_an_end(server: OneServer) -> None:
    server.gate.set()
    await asyncio.gather(*asking(server, *map(str, range(150))))
    assert [len(batch) for batch in server.batches] == [64, 64, 22]


async def test_an_error_is_told_to_its_own_caller(server: OneServer) -> None:
    server.gate.set()
    wrong, right = asking(server, "WRONG", "a")
    assert await right == ("a",)
    with pytest.raises(ResponseError):
        await wrong


@pytest.mark.parametrize("error", [None, KeyError("a bug")], ids=["away", "bug"])
async def test_nobody_waits_for_a_redis_that_fails(
    server: OneServer, error: Exception | None
) -> None:
    """Those who wait behind the batch that failed have waited long enough."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, _context: None)  # of the bug
    server.broken, server.error = error is None, error
    batches = RedisBatches(cast("Redis", server))
    first = asyncio.create_task(batches.run("a"))
    await under_way(server)
    second = asyncio.create_task(batches.run("b"))
    await asyncio.sleep(0)
    server.gate.set()
    for answer in (first, second):
        with pytest.raises(CacheUnavailable):
            await answer
    gc.collect()
    loop.set_exception_handler(None)
    server.broken, server.error = False, None
    assert await batches.run("c") == ("c",)


async def test_a_redis_that_hangs_fails_all_in_time(
    server: OneServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("authz.adapters.redis_batches.TIMEOUT_S", 0.01)
    for answer in asking(server, "a", "b"):
        with pytest.raises(CacheUnavailable):
            await answer


async def test_a_caller_that_leaves_takes_no_other_along(server: OneServer) -> None:
    leaving, staying = asking(server, "a", "b")
    await under_way(server)
    leaving.cancel()
    server.gate.set()
    assert await staying == ("b",)
    assert leaving.cancelled()
