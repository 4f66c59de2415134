"""New secrets are stored under the current pepper, and under no unknown one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from authz.adapters.postgres import connected
from authz.core.credential import Peppers
from authz.issuing import issue_secret
from tests.programs import authz

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.programs import Ended

    Run = Callable[..., Awaitable[Ended]]

FIRST, SECOND = b"first pepper of these tests, 32 bytes", b"second pepper, as long" * 2
CREATE = ("create", "--name", "ci", "--models", "*", "--json")


class House:
    """The command line, run with peppers."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self.database_url, self._folder = database_url, folder

    async def keys(
        self, *words: str, peppers: tuple[bytes, ...], given: bytes | None = None
    ) -> Ended:
        files = [self._folder / f"pepper-{n}" for n in range(len(peppers))]
        for file, pepper in zip(files, peppers, strict=True):
            file.write_bytes(pepper)
        env = {
            "AUTHZ_DATABASE_URL": self.database_url,
            "AUTHZ_KEY_PEPPER_FILE": str(files[0]) if files else "",
            "AUTHZ_KEY_OLD_PEPPER_FILES": ",".join(map(str, files[1:])),
        }
        return await authz("keys", *words, cwd=self._folder, env=env, given=given)

    async def made(self, *words: str, peppers: tuple[bytes, ...]) -> str:
        ended = await self.keys(*words, peppers=peppers)
        assert ended.status == 0, ended
        return str(json.loads(ended.out)["key"])

    async def stored(self) -> dict[bytes, Any]:
        async with connected(self.database_url) as connection:
            rows = await connection.fetch("SELECT digest, pepper_id FROM secrets")
        return {row["digest"]: row["pepper_id"] for row in rows}


@pytest.fixture
def house(database_url: str, tmp_path: Path) -> House:
    return House(database_url, tmp_path)


async def test_a_rotation_moves_a_key_to_the_current_pepper(house: House) -> None:
    plain = await house.made(*CREATE, peppers=())
    first = await house.made("rotate", "ci", "--json", peppers=(FIRST,))
    second = await house.made("rotate", "ci", "--json", peppers=(SECOND, FIRST))
    assert await house.stored() == {
        Peppers().digest(plain): None,
        Peppers(FIRST).digest(first): Peppers(FIRST).current_id,
        Peppers(SECOND).digest(second): Peppers(SECOND).current_id,
    }


async def test_an_imported_raw_key_is_stored_under_the_pepper(house: House) -> None:
    _, raw_key = issue_secret(Peppers())
    line = {"name": "old", "models": ["*"], "key": raw_key}
    ended = await house.keys(
        "import", peppers=(FIRST,), given=json.dumps(line).encode()
    )
    assert ended.status == 0, ended
    assert await house.stored() == {
        Peppers(FIRST).digest(raw_key): Peppers(FIRST).current_id
    }


async def test_a_revoked_key_does_not_come_back_under_another_pepper(
    house: House,
) -> None:
    raw_key = await house.made(*CREATE, peppers=())
    await house.keys("revoke", "ci", peppers=())
    line = {"name": "ci", "models": ["*"], "key": raw_key}
    given = json.dumps(line).encode()
    ended = await house.keys("import", peppers=(FIRST,), given=given)
    assert (ended.status, ended.out) == (1, "")
    assert list(await house.stored()) == [Peppers().digest(raw_key)]


@pytest.mark.parametrize("wrong", [(), (SECOND,)], ids=["none", "another"])
async def test_no_secret_is_made_with_a_pepper_that_does_not_match(
    house: House, wrong: tuple[bytes, ...]
) -> None:
    await house.made(*CREATE, peppers=(FIRST,))
    before = await house.stored()
    line = json.dumps({"name": "x", "models": ["*"], "digest": "00" * 32}).encode()
    for words in (
        ("create", "--name", "other", "--models", "*"),
        ("rotate", "ci"),
        ("import",),
    ):
        ended = await house.keys(*words, peppers=wrong, given=line)
        assert (ended.status, ended.out) == (2, "")
        assert "AUTHZ_KEY_PEPPER_FILE" in ended.err
        assert ended.err.count("\n") == 1
    assert await house.stored() == before
    assert (await house.keys("revoke", "ci", peppers=wrong)).status == 0
