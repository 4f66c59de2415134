"""What stands open around the gateway, as seen from where this runs.

Whoever shares a network namespace with Ollama reaches it without a key; from further
away nobody may. So every port that is listened on here is asked what it is.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING

from redis.asyncio import RedisCluster

from authz.adapters import redis_client
from authz.adapters.postgres import connected
from authz.adapters.postgres_schema import check_schema
from authz.cli import envoy_files, probes
from authz.cli.observation import Observation, State
from authz.errors import BackendError, SchemaError

if TYPE_CHECKING:
    from authz.adapters.postgres import Connection
    from authz.config import Settings

    Address = tuple[str, int]

_AT_ONCE = 50
# Limits and caches bear a second or two; an expiry or a window is off by as much.
_MOST_APART_S = 2.0
_TAKES_ALL = "Ollama takes requests without a key at"
_MAY_CHANGE_KEYS = """
SELECT bool_or(has_table_privilege(to_regclass(name), 'INSERT, UPDATE, DELETE'))
  FROM unnest(ARRAY['keys', 'secrets']) AS name
"""
# Where what listens on all addresses listens, too; IPv6 may be off, though it does.
_LOOPBACK = {4: ("127.0.0.1",), 6: ("::1", "127.0.0.1")}


async def look_around(settings: Settings, ollama: Address) -> list[Observation]:
    """Return what was found, one line each. Raises ConfigError."""
    return [
        *await _ports(),
        *await _around(ollama),
        *await envoy_files.observations(settings.listen / "admin.sock"),
        *await _database(settings.database_url.get_secret_value()),
        *await _cache(settings.redis_url.get_secret_value()),
    ]


async def _ports() -> list[Observation]:
    """Look for Ollama on the network, and for Envoy's admin interface anywhere."""
    try:
        listening = sorted({*probes.listening()})
    except OSError:
        return [
            Observation(State.UNKNOWN, "this system does not tell which ports listen")
        ]
    free = asyncio.Semaphore(_AT_ONCE)

    async def findings(host: str, port: int) -> list[Observation]:
        async with free:
            return await _behind(host, port)

    found = await asyncio.gather(*(findings(*address) for address in listening))
    opened = [finding for each in found for finding in each]
    here = f"of {len(listening)} ports that listen here"
    return opened or [
        Observation(State.OK, f"none {here} is Envoy's admin or an open Ollama")
    ]


async def _behind(host: str, port: int) -> list[Observation]:
    ip = ip_address(host)
    place = _written(host, port)
    for reached in _LOOPBACK[ip.version] if ip.is_unspecified else (host,):
        if await probes.is_admin(reached, port):
            advice = "make it a socket file for its owner, as in envoy.yaml"
            return [
                Observation(
                    State.OPEN, f"Envoy's admin interface is at {place}: {advice}"
                )
            ]
        if not ip.is_loopback and await probes.is_ollama(reached, port):
            return [
                Observation(
                    State.OPEN, f"{_TAKES_ALL} {place}: set OLLAMA_HOST=127.0.0.1"
                )
            ]
    return []


async def _around(ollama: Address) -> list[Observation]:
    """Call Ollama directly, as whoever runs here could."""
    place = _written(*ollama)
    if not await probes.is_ollama(*ollama):
        return [
            Observation(
                State.OK, f"no Ollama answers to a call around Envoy at {place}"
            )
        ]
    cloud = _cloud(await probes.get(*ollama, "/api/status"))
    if await probes.is_loopback(*ollama):
        told = "Ollama answers to whatever shares this network namespace"
        return [Observation(State.OK, f"{told}, at {place}"), cloud]
    return [
        Observation(State.OPEN, f"{_TAKES_ALL} {place}: let only Envoy reach it"),
        cloud,
    ]


def _cloud(answer: tuple[int, bytes]) -> Observation:
    with suppress(ValueError, LookupError, TypeError):
        disabled = json.loads(answer[1])["cloud"]["disabled"]
        if disabled is True:
            return Observation(State.OK, "Ollama passes nothing on to its cloud")
        if disabled is False:
            told = "Ollama passes requests on to its cloud"
            return Observation(State.OPEN, f"{told}: set OLLAMA_NO_CLOUD=1")
    return Observation(
        State.UNKNOWN, "this Ollama does not tell whether its cloud is off"
    )


async def _database(url: str) -> list[Observation]:
    try:
        async with connected(url) as connection:
            return [
                await _schema(connection),
                await _rights(connection),
                clock(
                    "PostgreSQL", await connection.fetchval("SELECT clock_timestamp()")
                ),
            ]
    except BackendError as error:
        return [Observation(State.UNKNOWN, f"schema, rights and clock: {error}")]


async def _schema(connection: Connection) -> Observation:
    try:
        await check_schema(connection)
    except SchemaError as error:
        return Observation(State.OPEN, str(error))
    return Observation(State.OK, "the schema fits")


async def _rights(connection: Connection) -> Observation:
    if await connection.fetchval(_MAY_CHANGE_KEYS):
        advice = "give the service a role of its own, see authz grants"
        return Observation(State.OPEN, f"the database role may change keys: {advice}")
    return Observation(State.OK, "the database role may not change keys")


async def _cache(url: str) -> list[Observation]:
    if not url:
        return []
    try:
        async with redis_client.redis_client(url) as client:
            with redis_client.translated_errors():
                if isinstance(client, RedisCluster):
                    told = await client.time(target_nodes=client.get_random_node())
                else:
                    told = await client.time()
    except BackendError as error:
        return [
            Observation(State.UNKNOWN, f"clock of Redis: it does not answer: {error}")
        ]
    return [clock("Redis", datetime.fromtimestamp(told[0] + told[1] / 1e6, UTC))]


def clock(whose: str, there: datetime) -> Observation:
    """Compare the clock here with what another one said just now."""
    ahead = (datetime.now(UTC) - there).total_seconds()
    if abs(ahead) <= _MOST_APART_S:
        return Observation(State.OK, f"the clock agrees with that of {whose}")
    side = "ahead of" if ahead > 0 else "behind"
    return Observation(
        State.OPEN, f"the clock is {abs(ahead):.0f} s {side} that of {whose}"
    )


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
