"""A gateway that many ask, and its accounts: was every request counted exactly once?"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis

from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.core.limits import parse_limits
from authz.core.model import Scope
from authz.errors import ConfigError
from authz.issuing import issue
from authz.local.stack import got
from benchmarks.crowd import MODEL, ask, model_server
from benchmarks.parts import starting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from authz.adapters.postgres import Connection
    from benchmarks.crowd import Client
    from benchmarks.parts import Proxy, Service

# More than the shipped clusters.yaml sends to a model server at once.
_MOST_AT_ONCE = 2000
_MODELS = ("registry.ollama.ai/library/llama3.*:*",)
_RECORDED_WITHIN_S = 20.0
_POLL_S = 0.1
_OK = HTTPStatus.OK.value

_RECORDED = "SELECT count(*) FROM usage_requests"
_USAGE = """
SELECT key_id::text AS key_id, sum(requests)::int AS requests,
       sum(aborted)::int AS aborted, sum(failed)::int AS failed,
       sum(input_tokens)::int AS input, sum(output_tokens)::int AS output
  FROM usage GROUP BY key_id
"""
_LOSSES = ("authz_usage_dropped_total", "authz_settlements_dropped_total")


@dataclass(frozen=True, slots=True)
class Key:
    """An issued key."""

    id: str
    raw: str


@dataclass(frozen=True, slots=True)
class Visit:
    """One request: what was asked for, what is to come of it, and who hears it."""

    key: Key
    lines: int
    expected: Sequence[int]
    leaves: bool
    client: Client

    @property
    def was_allowed(self) -> bool:
        """Whether it is to be counted."""
        return self.client.heard.status == _OK

    @property
    def problem(self) -> str:
        """What is wrong with it; empty if nothing is."""
        heard = self.client.heard
        if heard.status not in self.expected:
            return f"answered by {heard.status}, not by {self.expected}"
        if heard.complete == (self.leaves or not self.was_allowed):
            return f"ended after {heard.lines} of {self.lines} lines"
        return ""


@dataclass(frozen=True, slots=True)
class Gateway:
    """What runs, and its stores as an administrator sees them."""

    proxy: Proxy
    service: Service
    connection: Connection
    redis: Redis

    @property
    def pids(self) -> Mapping[str, int]:
        """The processes by name; the two ends of all streams are in this one."""
        ends = {"envoy": self.proxy.pid, "both ends": os.getpid()}
        return {**self.service.pids, **ends}

    async def key(self, limits: str = "") -> Key:
        """Issue a key."""
        new, raw = issue(
            f"key {secrets.token_hex(8)}",
            models=_MODELS,
            scopes=[Scope.INFERENCE.value],
            expires_at=None,
            limits=parse_limits(limits),
        )
        await PostgresKeyWriter(self.connection).create(new)
        return Key(str(new.id), raw)

    async def visit(
        self,
        key: Key,
        lines: int,
        *,
        model: str = MODEL,
        expected: Sequence[int] = (_OK,),
        leave_after: int | None = None,
    ) -> Visit:
        """Ask for lines; it goes on by itself, until its client has ended."""
        leaves = leave_after is not None
        client = await ask(
            self.proxy.port, key.raw, lines, model=model, leave_after=leave_after
        )
        return Visit(key, lines, expected, leaves, client)

    async def problems(self, visits: Sequence[Visit]) -> Sequence[str]:
        """Say what is wrong, now that all of these have ended; each thing once."""
        await self._recorded(visits)
        found = Counter(filter(None, (visit.problem for visit in visits)))
        found += Counter(await self._miscounted(visits))
        found += Counter(await self._keys_that_differ(visits))
        found += Counter([problem async for problem in self._lost()])
        found += Counter([problem async for problem in self._still_held()])
        return [f"{number} times: {problem}" for problem, number in found.items()]

    async def _recorded(self, visits: Sequence[Visit]) -> None:
        """Wait until there are as many as are to be; whether they are is for others."""
        allowed = sum(visit.was_allowed for visit in visits)
        with suppress(TimeoutError):
            async with asyncio.timeout(_RECORDED_WITHIN_S):
                while await self.connection.fetchval(_RECORDED) < allowed:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)

    async def _miscounted(self, visits: Sequence[Visit]) -> Sequence[str]:
        heard = [visit.client.heard.request_id for visit in visits if visit.was_allowed]
        recorded = await self.connection.fetchval(_RECORDED)
        problems = []
        if recorded != len(heard):
            problems.append(f"{recorded} requests are recorded, not {len(heard)}")
        if len(set(heard)) != len(heard):
            problems.append("two requests had one id")
        return problems

    async def _keys_that_differ(self, visits: Sequence[Visit]) -> Iterator[str]:
        rows = {row["key_id"]: dict(row) for row in await self.connection.fetch(_USAGE)}
        by_key: dict[str, list[Visit]] = {}
        for visit in visits:
            if visit.was_allowed:
                by_key.setdefault(visit.key.id, []).append(visit)
        pairs = [(rows.get(key), by_key.get(key, [])) for key in rows | by_key]
        return filter(None, (_difference(row, of_key) for row, of_key in pairs))

    async def counter(self, name: str) -> float:
        """Return the sum of a counter of authz."""
        async with got(self.service.metrics, "/metrics") as response:
            lines = (await response.text()).splitlines()
        counts = (line.rpartition(" ")[2] for line in lines if line.startswith(name))
        return sum(map(float, counts))

    async def _lost(self) -> AsyncIterator[str]:
        for name in _LOSSES:
            if lost := await self.counter(name):
                yield f"{name} is {lost:.0f}"
        if dropped := await self.proxy.counted("logs_dropped"):
            yield f"Envoy dropped {dropped} entries of its access log"

    async def _still_held(self) -> AsyncIterator[str]:
        async for name in self.redis.scan_iter("authz:limits:*"):
            if b":held:" in name or name.endswith(b":running"):
                yield "a request that has ended still holds a slot"


def _difference(row: Mapping[str, Any] | None, visits: Sequence[Visit]) -> str:
    """Compare what is recorded of a key with what its clients heard."""
    if row is None:
        return f"nothing is recorded of {len(visits)} requests of a key"
    counts = [visit.client.heard.counts for visit in visits]
    told = {
        "requests": len(visits),
        "aborted": sum(visit.leaves for visit in visits),
        "failed": 0,
    }
    if None not in counts:
        told["input"] = sum(count[0] for count in counts if count)
        told["output"] = sum(count[1] for count in counts if count)
    recorded = {name: row[name] for name in told}
    return "" if recorded == told else f"recorded {recorded}, but was {told}"


def _let_more_through(cluster: dict[str, Any]) -> None:
    bounds = ("max_connections", "max_pending_requests", "max_requests")
    (threshold,) = cluster["circuit_breakers"]["thresholds"]
    threshold.update(dict.fromkeys(bounds, _MOST_AT_ONCE))


@asynccontextmanager
async def running_gateway(lines_per_s: float) -> AsyncIterator[Gateway]:
    """Run all parts before a model server that says so many lines a second.

    Raises ConfigError, ChildDied.
    """
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(starting())
        await stack.enter_async_context(model_server(parts.upstream, lines_per_s))
        service = await parts.service()
        if service.redis_url is None:
            msg = "no Redis: neither a wheel of it nor a program on PATH"
            raise ConfigError(msg)
        proxy = await parts.envoy(
            "gateway", service.socket, model_server=_let_more_through
        )
        connection = await stack.enter_async_context(connected(service.database_url))
        redis = await stack.enter_async_context(Redis.from_url(service.redis_url))
        yield Gateway(proxy, service, connection, redis)
