"""Every change of a key is written down: who, what, before, after; never a secret."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from authz.adapters.postgres import connected
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.errors import AuthzError
from authz.issuing import issue
from authz.ports import KeyChanges
from tests.programs import authz

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.programs import Ended

    Run = Callable[..., Awaitable[Ended]]

CHANGES = (
    ("update", "ci", "--owner", "b"),
    ("disable", "ci"),
    ("enable", "ci"),
    ("rotate", "ci"),
    ("rotate", "ci", "--grace", "0"),
    ("revoke", "ci"),
)


@pytest.fixture
def run(tmp_path: Path, database_url: str) -> Run:
    env = {"AUTHZ_DATABASE_URL": database_url}
    return lambda *words, given=None, **more: authz(
        *words, cwd=tmp_path, env={**env, **more}, given=given
    )


async def events(run: Run, *words: str) -> list[dict[str, Any]]:
    return list(json.loads((await run("audit", "--json", *words)).out))


async def create(run: Run, name: str) -> str:
    options = ("--name", name, "--models", "*", "--json")
    return str(json.loads((await run("keys", "create", *options)).out)["key"])


async def test_an_expiry_of_another_time_zone_is_written_down_in_utc(run: Run) -> None:
    expires = ("--expires", "2999-01-31T01:00+02:00")
    await run("keys", "create", "--name", "ci", "--models", "*", *expires)
    await run("keys", "update", "ci", "--owner", "b")
    created, updated = await events(run)
    assert created["after"]["expires_at"] == "2999-01-30T23:00:00Z"
    assert updated["before"]["expires_at"] == "2999-01-30T23:00:00Z"


async def test_every_change_is_written_down_without_any_secret(
    run: Run, database_url: str
) -> None:
    raw_keys = [await create(run, "ci")]
    for words in CHANGES:
        changed = json.loads((await run("keys", *words, "--json")).out)
        raw_keys += [changed["key"]] if "key" in changed else []
    digest = hashlib.sha256(b"imported").hexdigest()
    line = json.dumps({"name": "old", "models": ["*"], "digest": digest}).encode()
    await run("keys", "import", given=line)
    found = await events(run)
    actions = [event["action"] for event in found]
    assert actions == ["create", *(words[0] for words in CHANGES), "import"]
    async with connected(database_url) as connection:
        dump = str(await connection.fetch("SELECT * FROM audit"))
    shown = dump + json.dumps(found) + (await run("audit")).out
    assert digest not in shown
    assert len(raw_keys) == 3
    for raw_key in raw_keys:
        assert raw_key[11:] not in shown
        assert hashlib.sha256(raw_key.encode()).hexdigest() not in shown


async def test_an_event_says_who_what_and_how(run: Run, database_url: str) -> None:
    await create(run, "ci")
    await run("keys", "update", "ci", "--owner", "b", AUTHZ_ACTOR="ada (on call)")
    created, updated = await events(run)
    assert created["actor"] == f"{getpass.getuser()}@{socket.gethostname()}"
    assert (created["before"], created["after"]["name"]) == (None, "ci")
    assert updated["actor"] == "ada (on call)"
    assert updated["after"] == updated["before"] | {"owner": "b"}
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}Z", updated["at"])
    async with connected(database_url) as connection:
        role = await connection.fetchval("SELECT session_user")
    assert updated["database_role"] == role
    people = (await run("audit")).out
    assert re.search(r'update +ci +owner "" -> "b"$', people, re.MULTILINE)


async def test_events_are_found_by_key_and_time(run: Run, database_url: str) -> None:
    for name in ("a", "b"):
        await create(run, name)
    (event,) = await events(run, "--key", "b")
    assert event["after"]["name"] == "b"
    async with connected(database_url) as connection:
        await connection.execute(
            "UPDATE audit SET at = at - interval '8 days' WHERE id = $1", event["id"]
        )
    (recent,) = await events(run, "--since", "7d")
    assert recent["after"]["name"] == "a"
    for words, status in ((("--key", "c"), 1), (("--since", "long ago"), 2)):
        ended = await run("audit", *words)
        assert (ended.status, ended.out) == (status, "")


async def test_what_changes_nothing_is_not_written_down(run: Run) -> None:
    await create(run, "ci")
    for _ in range(2):
        await run("keys", "revoke", "ci")
    await run("keys", "enable", "ci")
    actions = [event["action"] for event in await events(run)]
    assert actions == ["create", "revoke"]


async def test_a_change_that_cannot_be_written_down_is_not_made(
    database_url: str,
) -> None:
    new, _ = issue("ci", models=["*"], scopes=["read"], expires_at=None)
    other, _ = issue("other", models=["*"], scopes=["read"], expires_at=None)
    async with connected(database_url) as connection:
        writer = PostgresKeyWriter(connection)
        before = await writer.create(new)
        await connection.execute("ALTER TABLE audit ADD CHECK (false) NOT VALID")
        for change in (
            writer.update("ci", KeyChanges(disabled=True)),
            writer.revoke("ci"),
            writer.create(other),
        ):
            with pytest.raises(AuthzError):
                await change
        assert [record async for record in writer.list()] == [before]
