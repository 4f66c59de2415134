"""Existing keys from standard input: all or none, and no secret in any message."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_keys import PostgresKeys
from authz.core.credential import Peppers
from authz.issuing import issue_secret
from tests.programs import authz

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.programs import Ended

    Run = Callable[..., Awaitable[Ended]]

LLAMA = "registry.ollama.ai/library/llama3.1:latest"
_, RAW_KEY = issue_secret(Peppers())
DIGEST = hashlib.sha256(b"somewhere else").hexdigest()
GOOD = {"name": "good", "models": ["*"], "digest": DIGEST}


@pytest.fixture
def run(tmp_path: Path, database_url: str) -> Run:
    env = {"AUTHZ_DATABASE_URL": database_url}
    return lambda *lines, **more: authz(
        "keys",
        "import",
        cwd=tmp_path,
        env={**env, **more},
        given=b"\n".join(
            line if isinstance(line, bytes) else json.dumps(line).encode()
            for line in lines
        ),
    )


async def names(database_url: str) -> list[str]:
    async with connected(database_url) as connection:
        rows = await connection.fetch("SELECT name FROM keys ORDER BY name")
    return [row["name"] for row in rows]


async def test_keys_are_imported_by_digest_and_raw(run: Run, database_url: str) -> None:
    whole = {
        "name": "raw",
        "owner": "a team",
        "models": ["Llama3.1"],
        "scopes": ["read"],
        "parameters": "strict",
        "limits": "rpm=60",
        "expires_at": "2999-01-31T00:00:00Z",
        "key": RAW_KEY,
    }
    ended = await run(whole, b"", {**GOOD, "prefix": "nz_AAAAAAAA"})
    assert (ended.status, ended.out) == (0, "imported 2 keys\n")
    async with pooled(database_url) as pool:
        raw = await PostgresKeys(pool).find(Peppers().digests(RAW_KEY))
        good = await PostgresKeys(pool).find([bytes.fromhex(DIGEST)])
    assert raw is not None
    assert good is not None
    assert (raw.name, raw.owner, raw.models.patterns) == ("raw", "a team", (LLAMA,))
    assert (str(raw.parameters), raw.expires_at is None) == ("strict", False)
    assert (str(raw.limits), str(good.limits)) == ("rpm=60", "")
    assert (good.name, good.expires_at) == ("good", None)
    assert {scope.value for scope in good.scopes} == {"inference", "read"}


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b"\xff",
        b"[" * 60_000,
        b" " * 70_000 + b"{}",
        b'{"name":"a","name":"b","models":["*"],"digest":"' + DIGEST.encode() + b'"}',
        {},
        {**GOOD, "name": "other", "admin": True},
        {**GOOD, "name": 7},
        {**GOOD, "name": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
        {**GOOD, "name": "other", "models": "*"},
        {**GOOD, "name": "other", "models": []},
        {**GOOD, "name": "other", "models": ["m:cloud"]},
        {**GOOD, "name": "other", "models": ["a,b"]},
        {**GOOD, "name": "other", "scopes": ["admin"]},
        {**GOOD, "name": "other", "owner": None},
        {**GOOD, "name": "other", "parameters": "lax"},
        {**GOOD, "name": "other", "limits": "rpm=0"},
        {**GOOD, "name": "other", "expires_at": "2001-01-01"},
        {**GOOD, "name": "other", "expires_at": 7},
        {**GOOD, "name": "other", "digest": DIGEST[1:]},
        {**GOOD, "name": "other", "prefix": RAW_KEY},
        {**GOOD, "name": "other", "key": RAW_KEY},
        {"name": "other", "models": ["*"]},
        {"name": "other", "models": ["*"], "key": RAW_KEY[:-1] + "-"},
        {"name": "other", "models": ["*"], "key": "sk-" + RAW_KEY},
        {**GOOD, "name": "other"},
        {**GOOD, "digest": "00" * 32},
    ],
)
async def test_a_wrong_line_is_named_not_quoted_and_nothing_is_stored(
    run: Run, database_url: str, line: object
) -> None:
    ended = await run(GOOD, b"", line)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("authz: line 3: ")
    assert ended.err.count("\n") == 1
    assert DIGEST[1:] not in ended.err
    assert RAW_KEY[11:-1] not in ended.err
    assert await names(database_url) == []


async def test_a_key_that_is_there_already_is_named_and_nothing_is_stored(
    run: Run, database_url: str
) -> None:
    assert (await run(GOOD)).status == 0
    fresh = {**GOOD, "name": "fresh", "digest": "00" * 32}
    for there in (
        {**GOOD, "digest": "11" * 32},
        {**GOOD, "name": "other"},
    ):
        ended = await run(fresh, there)
        assert ended.status == 1
        assert ended.err == "authz: line 2: the name or the key is there already\n"
    assert await names(database_url) == ["good"]


async def test_nothing_given_is_nothing_imported(run: Run, database_url: str) -> None:
    ended = await run()
    assert (ended.status, ended.out) == (0, "imported 0 keys\n")
    assert await names(database_url) == []


async def test_a_longest_lifetime_holds_for_imported_keys(
    run: Run, database_url: str
) -> None:
    ended = await run(GOOD, AUTHZ_KEY_MAX_LIFETIME="30d")
    assert ended.status == 1
    assert ended.err.startswith("authz: line 1: ")
    assert await names(database_url) == []
    short = {**GOOD, "expires_at": "29d"}
    assert (await run(short, AUTHZ_KEY_MAX_LIFETIME="30d")).status == 0
