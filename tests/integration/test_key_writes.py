"""A change of a key whose line to the database ends at the worst moment."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.failing import until
from tests.programs import Ended, authz
from tests.proxy import line_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.proxy import Line

    Run = Callable[..., Awaitable[Ended]]

CREATE = ("create", "--name", "a team", "--models", "*")
COMMIT, GOODBYE = b"COMMIT;", b"X\x00\x00\x00\x04"
IMPORTED = b'{"name":"a team","models":["*"],"digest":"%b"}' % (b"00" * 32)
TELLS = "it is unknown whether the change was made; `authz keys show 'a team'` tells"
BUSY_S = 10.0


@pytest.fixture
async def run(tmp_path: Path, database_url: str) -> Run:
    def keys(
        *words: str, url: str = database_url, given: bytes | None = None
    ) -> Awaitable[Ended]:
        env = {"AUTHZ_DATABASE_URL": url}
        return authz("keys", *words, cwd=tmp_path, env=env, given=given)

    return keys


@pytest.fixture
async def line(database_url: str) -> AsyncIterator[tuple[Line, str]]:
    async with line_to(database_url) as through:
        yield through


async def test_a_line_that_ends_before_the_commit_arrives_leaves_no_change(
    run: Run, line: tuple[Line, str]
) -> None:
    line[0].lost = COMMIT
    assert_unknown(await run(*CREATE, url=line[1]))
    assert (await run("show", "a team")).status == 1


async def test_a_line_that_ends_before_the_commit_is_answered_leaves_the_change(
    run: Run, line: tuple[Line, str]
) -> None:
    """The new secret is lost: only who is told so makes another one."""
    line[0].last = COMMIT
    assert_unknown(await run(*CREATE, url=line[1]))

    async def is_there() -> bool:
        return (await run("show", "a team")).status == 0

    await until(is_there, BUSY_S)


@pytest.mark.parametrize(
    "words",
    [
        ("rotate", "a team", "--grace", "0"),
        ("update", "a team", "--owner", "b"),
        ("revoke", "a team"),
    ],
    ids=lambda words: words[0],
)
async def test_every_change_that_was_not_confirmed_says_so(
    run: Run, line: tuple[Line, str], words: tuple[str, ...]
) -> None:
    await run(*CREATE)
    line[0].lost = COMMIT
    assert_unknown(await run(*words, url=line[1]))


async def test_an_import_that_was_not_confirmed_says_so(
    run: Run, line: tuple[Line, str]
) -> None:
    line[0].lost = COMMIT
    assert_unknown(await run("import", url=line[1], given=IMPORTED))
    assert (await run("import", given=IMPORTED)).status == 0


async def test_a_line_that_ends_before_the_change_is_not_called_unknown(
    run: Run, line: tuple[Line, str]
) -> None:
    line[0].lost = b"INSERT INTO secrets"
    ended = await run(*CREATE, url=line[1])
    assert ended.status == 1
    assert re.fullmatch(r"authz: the database does not answer: \w+\n", ended.err)


async def test_a_key_that_was_made_is_printed_although_the_line_ends_then(
    run: Run, line: tuple[Line, str]
) -> None:
    line[0].lost = GOODBYE
    created = await run(*CREATE, "--json", url=line[1])
    rotated = await run("rotate", "a team", "--json", url=line[1])
    for ended in (created, rotated):
        assert ended.status == 0, ended
        assert json.loads(ended.out)["key"].startswith("nz_")


def assert_unknown(ended: Ended) -> None:
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("authz: ")
    assert ended.err.endswith(f"{TELLS}\n")
    assert ended.err.count("\n") == 1
