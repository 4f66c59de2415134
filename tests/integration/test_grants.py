"""Each program has a database role that can do its work and nothing else."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_keys import PostgresKeys
from authz.adapters.postgres_last_used import LastUsed
from authz.adapters.postgres_schema import check_schema
from authz.adapters.postgres_usage import PostgresUsage, PostgresUsageLog
from authz.core.credential import Peppers
from authz.core.metering import Finished, meter
from authz.local.process import private_directory
from authz.local.stack import free_port, running_authz
from authz.metrics import Metrics
from tests.failing import until
from tests.gateway import Stores, own_gateway
from tests.programs import authz
from tests.raw import http1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from authz.adapters.postgres import Pool
    from tests.gateway import Gateway
    from tests.programs import Ended
    from tests.services import Databases
    from tests.upstream import RawUpstream

BUSY_S = 10.0
# What the service remembers holds for longer than the test: only a notification
# ends it, and only while notifications arrive is it used at all.
REMEMBERED = {"AUTHZ_CACHE_TTL_S": "3600"}
FROM_MEMORY = 'authz_lookups_total{source="memory"} '
BEYOND_SERVICE = (
    """
    INSERT INTO keys (id, name, models, scopes)
    VALUES (gen_random_uuid(), 'x', '{*}', '{}')
    """,
    "UPDATE keys SET disabled = false",
    "DELETE FROM keys",
    "INSERT INTO secrets SELECT * FROM secrets",
    "UPDATE secrets SET expires_at = NULL",
    "DELETE FROM secrets",
    "TRUNCATE keys CASCADE",
    "DELETE FROM last_used",
    "SELECT * FROM audit",
    """
    INSERT INTO audit (actor, action, key_id) VALUES ('x', 'x', gen_random_uuid())
    """,
    "DELETE FROM usage",
    "TRUNCATE usage",
    "SELECT * FROM usage_other",
    "UPDATE schema_migrations SET checksum = ''",
    "ALTER TABLE keys DISABLE TRIGGER ALL",
    "DROP TABLE keys",
)
BEYOND_MANAGER = (
    "UPDATE audit SET actor = 'somebody else'",
    "DELETE FROM audit",
    "TRUNCATE audit",
    """
    INSERT INTO audit (at, actor, action, key_id)
    VALUES (now(), 'x', 'x', gen_random_uuid())
    """,
    """
    INSERT INTO audit (database_role, actor, action, key_id)
    VALUES ('x', 'x', 'x', gen_random_uuid())
    """,
    "DELETE FROM keys",
    "UPDATE usage SET requests = 0",
    "DELETE FROM usage",
    "SELECT * FROM usage_requests",
    "UPDATE schema_migrations SET checksum = ''",
    "ALTER TABLE keys DISABLE TRIGGER ALL",
    "DROP TABLE audit",
)


@dataclass(frozen=True, slots=True)
class Site:
    """A database and the URLs of those who come to it."""

    owner: str
    service: str
    manager: str
    folder: Path

    async def run(self, url: str, *words: str) -> Ended:
        return await authz(*words, cwd=self.folder, env={"AUTHZ_DATABASE_URL": url})

    async def grant(self) -> Ended:
        roles = ("--service", name_of(self.service), "--manager", name_of(self.manager))
        return await self.run(self.owner, "grants", *roles)


def name_of(url: str) -> str:
    return unquote(urlsplit(url).username or "")


@pytest.fixture
async def site(
    server: Databases, database_url: str, tmp_path: Path
) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(server.role(database_url))
        manager = await stack.enter_async_context(server.role(database_url))
        yield Site(database_url, service, manager, tmp_path)


async def test_the_roles_do_their_work(site: Site) -> None:
    granted = await site.grant()
    assert granted.status == 0, granted
    assert name_of(site.service) in granted.out
    assert "  SELECT ON keys\n" in granted.out
    create = ("keys", "create", "--name", "ci", "--models", "*", "--json")
    created = await site.run(site.manager, *create)
    assert created.status == 0, created
    for words in (
        ("keys", "update", "ci", "--owner", "b"),
        ("keys", "rotate", "ci", "--grace", "0"),
        ("keys", "rotate", "ci"),
        ("keys", "disable", "ci"),
        ("keys", "show", "ci"),
        ("keys", "list"),
        ("audit",),
        ("usage",),
        ("keys", "revoke", "ci"),
    ):
        ended = await site.run(site.manager, *words)
        assert ended.status == 0, ended
    digests = Peppers().digests(json.loads(created.out)["key"])
    async with connected(site.service) as connection, pooled(site.service) as pool:
        await check_schema(connection)
        assert await PostgresKeys(pool).find(digests) is None  # rotated away
        await LastUsed(site.service, lambda: datetime.now(UTC)).write()
        await use_and_ask(site.service, pool)


async def use_and_ask(url: str, pool: Pool) -> None:
    """Record a request twice, so that its row is made and changed, and ask for it."""
    now, key_id = datetime.now(UTC), str(uuid4())
    log = PostgresUsageLog(url, lambda: now, Metrics(CollectorRegistry()))
    began = int(now.timestamp())
    for request_id in ("a", "b"):
        request = Finished(
            *(request_id, key_id, "", "/api/chat", "m", began),
            status=200,
            input_tokens=1,
            output_tokens=2,
        )
        log.note(request, meter(request))
        await log.write()
    assert await PostgresUsage(pool, log).tokens_since(key_id, began - 3600) == 6


async def test_the_service_runs_and_notes_uses_as_its_role(site: Site) -> None:
    await site.grant()
    create = ("keys", "create", "--name", "ci", "--models", "*", "--json")
    key = json.loads((await site.run(site.manager, *create)).out)["key"]
    with private_directory("authz-grants-") as run:
        settings = {"AUTHZ_DATABASE_URL": site.service, "AUTHZ_LISTEN": str(run)}
        metrics = ("127.0.0.1", free_port())
        async with running_authz(settings, metrics, log=site.folder / "log"):
            pass
    last_used = LastUsed(site.service, lambda: datetime.now(UTC))
    for _ in range(2):
        last_used.note_again()
        last_used.note(Peppers().digest(key))
        await last_used.write()
    shown = json.loads((await site.run(site.owner, "keys", "show", "ci", "--json")).out)
    assert shown["last_used_at"] is not None


async def test_a_gateway_serves_notes_and_revokes_as_the_role_of_the_service(
    site: Site, redis_url: str
) -> None:
    await site.grant()
    create = ("keys", "create", "--name", "ci", "--models", "llama3.1", "--json")
    key = json.loads((await site.run(site.manager, *create)).out)["key"]
    stores = Stores(site.service, redis_url, REMEMBERED)
    async with own_gateway(stores, site.folder) as gateway:

        async def is_remembered() -> bool:
            before = await from_memory(gateway)
            assert await status(gateway, key) == 200
            return await from_memory(gateway) > before

        async def is_refused() -> bool:
            return await status(gateway, key) == 401

        assert await status(gateway, key) == 200
        assert await status(gateway, key, "another") == 403
        await until(is_remembered, BUSY_S)
        assert (await site.run(site.manager, "keys", "revoke", "ci")).status == 0
        await until(is_refused, BUSY_S)
    assert "lacks a right" not in (site.folder / "authz.log").read_text()
    shown = json.loads((await site.run(site.owner, "keys", "show", "ci", "--json")).out)
    assert shown["last_used_at"] is not None


async def status(
    gateway: Gateway[RawUpstream], key: str, model: str = "llama3.1"
) -> int:
    body = json.dumps({"model": model})
    request = (
        f"POST /api/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    )
    return (await http1(gateway.port, request.encode())).status


async def from_memory(gateway: Gateway[RawUpstream]) -> float:
    page = await http1(gateway.metrics_port, b"GET /metrics HTTP/1.0\r\n\r\n")
    lines = page.body.decode().splitlines()
    found = (line.removeprefix(FROM_MEMORY) for line in lines if FROM_MEMORY in line)
    return float(next(found, "0"))


async def test_the_service_cannot_change_what_it_reads(site: Site) -> None:
    await site.grant()
    for statement in BEYOND_SERVICE:
        await assert_denied(site.service, statement)


async def test_the_manager_cannot_change_what_was_written_down(site: Site) -> None:
    await site.grant()
    for statement in BEYOND_MANAGER:
        await assert_denied(site.manager, statement)


async def test_granting_again_leaves_exactly_what_is_needed(site: Site) -> None:
    first = await site.grant()
    async with connected(site.owner) as connection:
        quoted = await connection.fetchval(
            "SELECT quote_ident($1)", name_of(site.service)
        )
        await connection.execute(f"GRANT ALL ON keys, audit TO {quoted}")
    assert await site.grant() == first
    await assert_denied(site.service, "DELETE FROM keys")
    await assert_denied(site.service, "SELECT * FROM audit")


async def test_a_role_that_is_not_there_or_owns_the_tables_is_refused(
    site: Site,
) -> None:
    owner = name_of(site.owner)
    for name in ("nobody there", "PUBLIC", 'x"; DROP TABLE keys; --', owner):
        ended = await site.run(site.owner, "grants", "--manager", name)
        assert (ended.status, ended.out) == (1, "")
        assert ended.err.count("\n") == 1
    assert (await site.run(site.owner, "keys", "list")).status == 0
    for words in ((), ("--service", owner, "--manager", owner)):
        assert (await site.run(site.owner, "grants", *words)).status == 2


async def assert_denied(url: str, statement: str) -> None:
    async with connected(url) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
