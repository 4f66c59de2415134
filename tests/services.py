"""Real PostgreSQL and Redis for tests: given, in containers, or embedded."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.local.postgres import embedded_postgres
from authz.local.redis import embedded_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Databases:
    """A server on which every test gets a database of its own, migrated."""

    url: str
    template: str
    superuser: str

    @asynccontextmanager
    async def fresh(self, *, migrated: bool = True) -> AsyncIterator[str]:
        """Yield the URL of a new database; it is dropped after the block."""
        template = self.template if migrated else "template1"
        async with _database(self.url, self.superuser, template) as url:
            yield url

    @asynccontextmanager
    async def role(self, database_url: str) -> AsyncIterator[str]:
        """Yield the URL of a new role on a database; it may do nothing yet."""
        name, password = f'test "{uuid4().hex}', uuid4().hex
        parts = urlsplit(database_url)
        admin = urlsplit(self.superuser)._replace(path=parts.path)
        quoted = name.replace('"', '""')
        connection = await asyncpg.connect(urlunsplit(admin))
        try:
            await connection.execute(
                f"CREATE ROLE \"{quoted}\" LOGIN PASSWORD '{password}'"
            )
            host = parts.netloc.rpartition("@")[2]
            user = f"{quote(name)}:{password}"
            yield urlunsplit(parts._replace(netloc=f"{user}@{host}"))
        finally:
            await connection.execute(f'DROP OWNED BY "{quoted}"')
            await connection.execute(f'DROP ROLE "{quoted}"')
            await connection.close()


@asynccontextmanager
async def databases(directory: Path) -> AsyncIterator[Databases]:
    """Start or find PostgreSQL and prepare the template."""
    async with _postgres(directory) as url:
        superuser = _superuser(url, directory)
        async with _database(url, superuser, "template1") as template_url:
            async with connected(template_url) as connection:
                await postgres_schema.migrate(connection)
            yield Databases(url, urlsplit(template_url).path[1:], superuser)


def _superuser(url: str, directory: Path) -> str:
    """Return the URL of who may create roles; a given server's role must do."""
    password = directory / "superuser.password"
    if not password.exists():
        return url
    user = f"postgres:{password.read_text()}"
    return urlunsplit(urlsplit(url)._replace(netloc=f"{user}@", path="/postgres"))


@asynccontextmanager
async def redis_server(directory: Path) -> AsyncIterator[str]:
    """Start or find Redis and yield its URL."""
    given = os.environ.get("AUTHZ_TEST_REDIS_URL")
    if given:
        yield given
    elif _docker_answers():
        from testcontainers.community.redis import RedisContainer  # noqa: PLC0415 - slow to import

        with RedisContainer("redis:7.4-bookworm") as container:
            host = container.get_container_host_ip()
            yield f"redis://{host}:{container.get_exposed_port(6379)}/0"
    else:
        async with embedded_redis(directory) as url:
            assert url is not None, "no Redis: neither given, nor Docker, nor a binary"
            yield url


@asynccontextmanager
async def _postgres(directory: Path) -> AsyncIterator[str]:
    given = os.environ.get("AUTHZ_TEST_DATABASE_URL")
    if given:
        yield given
    elif _docker_answers():
        from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415 - slow to import

        with PostgresContainer("postgres:16.10-bookworm", driver=None) as container:
            yield container.get_connection_url()
    else:
        async with embedded_postgres(directory, durable=False) as url:
            yield url


def _docker_answers() -> bool:
    with socket.socket(socket.AF_UNIX) as engine:
        try:
            engine.connect("/var/run/docker.sock")
        except OSError:
            return "DOCKER_HOST" in os.environ
    return True


@asynccontextmanager
async def _database(server: str, superuser: str, template: str) -> AsyncIterator[str]:
    name = f"test_{uuid4().hex}"
    async with connected(server) as connection:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        # An autovacuum worker that is in it may be ended by a superuser alone.
        async with connected(superuser) as connection:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
