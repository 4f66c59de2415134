"""The commands as people and scripts use them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from authz import cli
from authz.adapters.postgres import connected
from authz.core.credential import mint
from tests import secrecy
from tests.programs import Ended, authz

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Run = Callable[..., Awaitable[Ended]]

LLAMA = "registry.ollama.ai/library/llama3.1:latest"
MANY_KEYS = """
INSERT INTO keys (id, name, models, scopes, created_at)
SELECT gen_random_uuid(), 'key ' || n, '{*}', '{read}', now() + n * interval '1 s'
  FROM generate_series(1, $1::int) n
"""


@pytest.fixture
def run(tmp_path: Path, database_url: str) -> Run:
    env = {
        "AUTHZ_DATABASE_URL": database_url,
        "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
    }
    return lambda *words, given=None, **more: authz(
        *words, cwd=tmp_path, env={**env, **more}, given=given
    )


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Run a command in this process, which spares many cases a start of Python.

    No database is there: what is wrong is to be said before it is asked.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTHZ_DATABASE_URL", "postgresql://127.0.0.1:1/db")

    def run_here(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["authz", *words])
        with pytest.raises(SystemExit) as ended:
            cli.run()
        out, err = capfd.readouterr()
        secrecy.errors_printed.append(err.encode())
        return Ended(int(ended.value.code or 0), out, err)

    return run_here


async def test_a_created_key_is_printed_once_and_stored_as_a_digest(
    run: Run, database_url: str
) -> None:
    options = ("--name", "ci", "--owner", "a team", "--models", "Llama3.1")
    created = json.loads((await run("keys", "create", *options, "--json")).out)
    assert set(created) >= {"id", "name", "owner", "key", "prefix", "models"}
    assert created["models"] == [LLAMA]
    assert created["scopes"] == ["inference", "read"]
    assert created["expires_at"] is None
    assert created["key"].startswith(created["prefix"])
    shown = await run("keys", "show", "ci", "--json")
    assert "key" not in json.loads(shown.out)
    async with connected(database_url) as connection:
        digest = await connection.fetchval("SELECT digest FROM secrets")
        dump = str(await connection.fetch("SELECT * FROM keys, secrets"))
    assert digest == hashlib.sha256(created["key"].encode()).digest()
    assert created["key"][11:] not in dump


async def test_people_get_a_table_and_the_key(run: Run) -> None:
    created = await run("keys", "create", "--name", "ci", "--models", "*")
    assert re.search(r"^nz_[0-9A-Za-z]{49}$", created.out, re.MULTILINE)
    listed = await run("keys", "list")
    assert re.search(r"^ID +NAME .*\n[0-9a-f-]{36} +ci ", listed.out)


async def test_a_long_list_is_whole_and_in_order(run: Run, database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute(MANY_KEYS, 1_700)
    listed = json.loads((await run("keys", "list", "--json")).out)
    assert [key["name"] for key in listed] == [f"key {n}" for n in range(1, 1_701)]
    heading, *rows = (await run("keys", "list")).out.splitlines()
    assert heading.startswith("ID ")
    assert [re.split(" {2,}", row)[1] for row in rows] == [k["name"] for k in listed]


async def test_no_keys_are_an_empty_list(run: Run) -> None:
    assert json.loads((await run("keys", "list", "--json")).out) == []
    assert re.fullmatch(r"ID  NAME  .*MODELS\n", (await run("keys", "list")).out)


async def test_a_reader_that_stops_reading_a_list_ends_it_quietly(
    tmp_path: Path, database_url: str
) -> None:
    async with connected(database_url) as connection:
        await connection.execute(MANY_KEYS, 5_000)
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f"{sys.executable} -m authz keys list | head -n 1"),
        cwd=tmp_path,
        env={**os.environ, "AUTHZ_DATABASE_URL": database_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert out.startswith(b"ID ")
    assert err == b""


async def test_a_revoked_key_is_listed_as_such(run: Run) -> None:
    await run("keys", "create", "--name", "ci", "--models", "*")
    revoked = json.loads((await run("keys", "revoke", "ci", "--json")).out)
    (listed,) = json.loads((await run("keys", "list", "--json")).out)
    assert revoked == listed
    assert listed["state"] == "revoked"


async def test_what_a_key_may_ask_of_the_machine_is_set_shown_and_changed(
    run: Run,
) -> None:
    limited = ("--parameters", "strict,num_ctx=4096,num_ctx@Llama3.1=8192")
    options = ("--name", "ci", "--models", "*", "--json")
    created = json.loads((await run("keys", "create", *options, *limited)).out)
    assert created["parameters"] == f"strict,num_ctx=4096,num_ctx@{LLAMA}=8192"
    shown = json.loads((await run("keys", "show", "ci", "--json")).out)
    in_force = shown["parameters_in_force"]
    assert in_force["num_ctx"] == "4096"
    assert in_force[f"num_ctx@{LLAMA}"] == "8192"
    assert in_force["raw"] == "never"
    people = (await run("keys", "show", "ci")).out
    assert re.search(
        r"^PARAMETER +ALLOWED\n(.*\n)*num_ctx +4096$", people, re.MULTILINE
    )
    updated = await run("keys", "update", "ci", "--parameters", "default", "--json")
    assert json.loads(updated.out)["parameters"] == "default"


async def test_how_much_a_key_may_use_is_set_shown_changed_and_ended(run: Run) -> None:
    limits = ("--rpm", "60", "--tpm", "90000", "--concurrency", "4")
    options = ("--name", "ci", "--models", "*", "--json", "--budget", "1000000/day")
    created = json.loads((await run("keys", "create", *options, *limits)).out)
    names = ("rpm", "tpm", "concurrency", "budget")
    assert [created[name] for name in names] == [60, 90000, 4, "1000000/day"]
    changes = ("--rpm", "none", "--budget", "5/month", "--json")
    await run("keys", "update", "ci", *changes)
    shown = json.loads((await run("keys", "show", "ci", "--json")).out)
    assert [shown[name] for name in names] == [None, 90000, 4, "5/month"]
    people = (await run("keys", "show", "ci")).out
    assert re.search(r"^budget +5/month$", people, re.MULTILINE)
    (event,) = json.loads((await run("audit", "--json")).out)[1:]
    assert event["before"]["limits"].startswith("rpm=60")


async def test_an_update_changes_what_is_given(run: Run) -> None:
    await run("keys", "create", "--name", "ci", "--models", "*", "--owner", "a")
    options = ("--models", "llama3.1", "--scopes", "read", "--json")
    updated = json.loads((await run("keys", "update", "ci", *options)).out)
    assert (updated["models"], updated["scopes"]) == ([LLAMA], ["read"])
    assert updated["owner"] == "a"
    emptied = await run("keys", "update", "ci", "--owner", "", "--json")
    assert json.loads(emptied.out)["owner"] == ""
    await run("keys", "revoke", "ci")
    refused = await run("keys", "update", "ci", "--owner", "b")
    assert_one_line(refused, status=1)


async def test_a_key_is_disabled_and_enabled(run: Run) -> None:
    await run("keys", "create", "--name", "ci", "--models", "*")
    for command, state in (("disable", "disabled"), ("enable", "active")):
        ended = await run("keys", command, "ci", "--json")
        assert json.loads(ended.out)["state"] == state


async def test_a_rotation_prints_the_new_key_once_and_ends_the_old_one(
    run: Run,
) -> None:
    options = ("--name", "ci", "--models", "*", "--owner", "a", "--json")
    created = json.loads((await run("keys", "create", *options)).out)
    rotated = json.loads((await run("keys", "rotate", "ci", "--json")).out)
    assert rotated["key"].startswith(rotated["prefix"])
    fresh = {name: rotated[name] for name in ("key", "prefix")}
    assert rotated == created | fresh
    assert rotated["key"] != created["key"]
    shown = await run("keys", "show", "ci", "--json")
    newest, oldest = json.loads(shown.out)["secrets"]
    assert (newest["prefix"], newest["expires_at"]) == (rotated["prefix"], None)
    assert oldest["prefix"] == created["prefix"]
    left = datetime.fromisoformat(oldest["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left < timedelta(hours=24)
    people = await run("keys", "rotate", "ci", "--grace", "0")
    assert re.search(r"^nz_[0-9A-Za-z]{49}$", people.out, re.MULTILINE)


async def test_an_expiry_is_updated_and_taken_away(run: Run) -> None:
    await run("keys", "create", "--name", "ci", "--models", "*", "--expires", "1d")
    for given, expected in (("2999-01-31", "2999-01-31T00:00:00Z"), ("never", None)):
        ended = await run("keys", "update", "ci", "--expires", given, "--json")
        assert json.loads(ended.out)["expires_at"] == expected


async def test_an_expiry_is_a_duration_or_a_date(run: Run) -> None:
    options = ("keys", "create", "--json", "--models", "*")
    date = await run(*options, "--name", "a", "--expires", "2999-01-31")
    assert json.loads(date.out)["expires_at"] == "2999-01-31T00:00:00Z"
    duration = await run(*options, "--name", "b", "--expires", "90d")
    assert json.loads(duration.out)["expires_at"] > "2026"


async def test_a_longest_lifetime_makes_an_expiry_mandatory(run: Run) -> None:
    options = ("keys", "create", "--name", "a", "--models", "*")
    longest = {"AUTHZ_KEY_MAX_LIFETIME": "30d"}
    for more in ((), ("--expires", "31d")):
        refused = await run(*options, *more, **longest)
        assert (refused.status, refused.out) == (1, "")
    assert (await run(*options, "--expires", "30d", **longest)).status == 0
    for given in ("31d", "never"):
        beyond = await run("keys", "update", "a", "--expires", given, **longest)
        assert_one_line(beyond, status=1)
    assert (await run("keys", "rotate", "a", **longest)).status == 0


async def test_a_longest_lifetime_also_holds_for_keys_from_before(run: Run) -> None:
    await run("keys", "create", "--name", "a", "--models", "*")
    longest = {"AUTHZ_KEY_MAX_LIFETIME": "30d"}
    refused = await run("keys", "rotate", "a", **longest)
    assert_one_line(refused, status=1)
    assert "update --expires" in refused.err
    updated = await run("keys", "update", "a", "--expires", "30d", **longest)
    assert updated.status == 0
    assert (await run("keys", "rotate", "a", **longest)).status == 0


@pytest.mark.parametrize(
    "words",
    [
        ("create", "--name", "a"),
        ("create", "--name", "a", "--models", "m:cloud"),
        ("create", "--name", "a", "--models", "m,"),
        ("create", "--name", "a\n", "--models", "*"),
        ("create", "--name", "", "--models", "*"),
        ("create", "--name", mint(bytes(32)), "--models", "*"),
        ("show", mint(bytes(32))),
        ("create", "--name", "x" * 81, "--models", "*"),
        ("create", "--name", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "--models", "*"),
        ("create", "--name", "a", "--models", "*", "--scopes", "admin"),
        ("create", "--name", "a", "--models", "*", "--expires", "yesterday"),
        ("create", "--name", "a", "--models", "*", "--expires", "2001-01-01"),
        ("create", "--name", "a", "--models", "*", "--parameters", "lax"),
        ("create", "--name", "a", "--models", "*", "--rpm", "0"),
        ("create", "--name", "a", "--models", "*", "--tpm", "1e5"),
        ("create", "--name", "a", "--models", "*", "--concurrency", "-1"),
        ("create", "--name", "a", "--models", "*", "--budget", "5/week"),
        ("update", "a", "--budget", "5"),
        ("create", "--name", "a", "--models", "*", "--parameters", "strict,num_ctx=x"),
        ("update", "a"),
        ("update", "a", "--expires", "soon"),
        ("rotate", "a", "--grace", "-1h"),
        ("rotate", "a", "--grace", "367d"),
        ("disable",),
        ("update", "a", "--models", "m:cloud"),
        ("update", "--owner", "b"),
        ("show",),
        ("nothing",),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    run_here: Callable[..., Ended], words: tuple[str, ...]
) -> None:
    assert_one_line(run_here("keys", *words), status=2)


async def test_a_program_that_is_used_wrongly_ends_with_one_line_and_status_2(
    run: Run,
) -> None:
    assert_one_line(await run("keys", "update", "a"), status=2)
    assert_one_line(await run("migrate", AUTHZ_WORKERS="none"), status=2)


async def test_what_cannot_be_done_is_one_line_and_status_1(run: Run) -> None:
    await run("keys", "create", "--name", "a", "--models", "*")
    taken = await run("keys", "create", "--name", "a", "--models", "*")
    assert_one_line(taken, status=1)
    assert_one_line(await run("keys", "show", "nobody"), status=1)
    assert_one_line(await run("keys", "update", "nobody", "--owner", "b"), status=1)
    for command in ("revoke", "rotate", "disable", "enable"):
        assert_one_line(await run("keys", command, "nobody"), status=1)
    await run("keys", "revoke", "a")
    for command in ("rotate", "disable", "enable"):
        assert_one_line(await run("keys", command, "a"), status=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AUTHZ_DATABASE_URL", ""),
        ("AUTHZ_DATABASE_URL", "mysql://user:hunter2@host/db"),
        ("AUTHZ_DATABASE_URL", "postgresql://user:hunter2@one,two/db"),
        ("AUTHZ_WORKERS", "none"),
        ("AUTHZ_METRICS_LISTEN", "9464"),
        ("AUTHZ_CACHE_TTL_S", "-1"),
        ("AUTHZ_CACHE_SECRET", "hunter2 and 24 more characters:"),
        ("AUTHZ_KEY_MAX_LIFETIME", "a month"),
        ("AUTHZ_LOG_LEVEL", "loud"),
        ("AUTHZ_ACTOR", "a\nb"),
    ],
)
@pytest.mark.parametrize("command", [("serve",), ("keys", "list"), ("migrate",)])
def test_a_bad_setting_is_one_line_that_names_it(
    run_here: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    ended = run_here(*command)
    assert_one_line(ended, status=2)
    assert name in ended.err
    assert "hunter2" not in ended.err


async def test_a_database_that_does_not_answer_is_one_line_without_its_password(
    run: Run,
) -> None:
    url = "postgresql://user:hunter2@127.0.0.1:1/db"
    ended = await run("keys", "list", AUTHZ_DATABASE_URL=url)
    assert_one_line(ended, status=1)
    assert "hunter2" not in ended.err


async def test_migrate_says_that_there_is_nothing_to_do(run: Run) -> None:
    assert (await run("migrate")).out == "nothing to apply\n"


async def test_the_service_refuses_a_schema_that_it_cannot_read(
    run: Run, database_url: str, tmp_path: Path
) -> None:
    async with connected(database_url) as connection:
        await connection.execute("UPDATE schema_migrations SET oldest_reader = 9999")
    ended = await run(
        "serve", AUTHZ_LISTEN=str(tmp_path), AUTHZ_METRICS_LISTEN="127.0.0.1:0"
    )
    assert ended.status == 2
    assert "upgrade authz" in ended.err


async def test_the_service_does_not_start_with_what_can_never_work(
    run: Run, database_url: str, tmp_path: Path
) -> None:
    short, other = tmp_path / "short", tmp_path / "other"
    short.write_bytes(b"a pepper that is too short by 1")
    other.write_bytes(b"a pepper that is just long enough")
    peppered = {"AUTHZ_KEY_PEPPER_FILE": str(other)}
    await run("keys", "create", "--name", "a", "--models", "*", **peppered)
    wrong = urlsplit(database_url)._replace(path="/nowhere").geturl()
    for name, setting in (
        ("AUTHZ_KEY_PEPPER_FILE", {"AUTHZ_KEY_PEPPER_FILE": str(short)}),
        ("AUTHZ_KEY_PEPPER_FILE", {"AUTHZ_KEY_PEPPER_FILE": str(tmp_path / "none")}),
        ("AUTHZ_KEY_OLD_PEPPER_FILES", {}),  # the key's pepper is not given
        ("AUTHZ_DATABASE_URL", {"AUTHZ_DATABASE_URL": wrong}),
    ):
        ended = await run("serve", AUTHZ_LISTEN=str(tmp_path), **setting)
        assert ended.status == 2, ended
        (line,) = [s for s in ended.err.splitlines() if s.startswith("authz: ")]
        assert name in line
        assert "Traceback" not in ended.err


@pytest.mark.parametrize("folder", ["nowhere", "x" * 120])
async def test_a_folder_that_cannot_hold_sockets_is_one_line(
    run: Run, tmp_path: Path, folder: str
) -> None:
    ended = await run("serve", AUTHZ_LISTEN=str(tmp_path / folder))
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith("authz: AUTHZ_LISTEN: ")
    assert "Traceback" not in ended.err


async def test_a_health_check_without_a_service_is_one_line(run: Run) -> None:
    ended = await run("healthcheck", AUTHZ_METRICS_LISTEN="127.0.0.1:1")
    assert_one_line(ended, status=1)


def assert_one_line(ended: Ended, status: int) -> None:
    assert ended.status == status, ended
    assert ended.out == ""
    assert re.fullmatch(r"authz: [^\n]+\n", ended.err), ended.err
