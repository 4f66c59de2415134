"""One suite for the fake and the real key store, so that the fake stays honest."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from authz.adapters.postgres import connected, pooled
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_keys import PostgresKeys
from authz.core.credential import Peppers
from authz.core.limits import parse_limits
from authz.core.model import Scope
from authz.core.parameters import parse_parameters
from authz.errors import Refused
from authz.issuing import issue, issue_secret
from authz.ports import Expiry, KeyChanges
from tests.fakes import MemoryKeys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from authz.core.limits import Budget
    from authz.core.model import Key
    from authz.ports import KeyReader, KeyWriter, NewKey, NewSecret

LLAMA = "registry.ollama.ai/library/llama3.1:latest"
DAY, NO_GRACE = timedelta(days=1), timedelta()


@dataclass
class Store:
    reader: KeyReader
    writer: KeyWriter


@pytest.fixture(params=["memory", "postgres"])
async def store(
    request: pytest.FixtureRequest, database_url: str
) -> AsyncIterator[Store]:
    if request.param == "memory":
        memory = MemoryKeys()
        yield Store(memory, memory)
        return
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(pooled(database_url))
        connection = await stack.enter_async_context(connected(database_url))
        yield Store(PostgresKeys(pool), PostgresKeyWriter(connection))


def new_key(name: str = "ci", expires_at: datetime | None = None) -> NewKey:
    new, _ = issue(
        name,
        owner="platform",
        models=[LLAMA],
        scopes=["inference"],
        expires_at=expires_at,
    )
    return new


def new_secret() -> NewSecret:
    secret, _ = issue_secret(Peppers())
    return secret


async def found(store: Store, secret: NewSecret) -> Key:
    key = await store.reader.find([secret.digest])
    assert key is not None
    return key


async def test_a_created_key_is_found_by_its_digest(store: Store) -> None:
    new = new_key(expires_at=datetime.now(UTC) + timedelta(days=1))
    await store.writer.create(new)
    key = await store.reader.find([new.digest])
    assert key is not None
    assert (key.id, key.name, key.owner) == (str(new.id), "ci", "platform")
    assert key.models.patterns == (LLAMA,)
    assert key.scopes == frozenset({Scope.INFERENCE})
    assert key.expires_at == new.expires_at
    assert (key.disabled, key.revoked) == (False, False)


async def test_an_unknown_digest_is_none(store: Store) -> None:
    assert await store.reader.find([bytes(32)]) is None


async def test_a_revoked_key_is_found_as_revoked_with_a_higher_version(
    store: Store,
) -> None:
    new = new_key()
    await store.writer.create(new)
    before = await store.reader.find([new.digest])
    await store.writer.revoke("ci")
    after = await store.reader.find([new.digest])
    assert before is not None
    assert after is not None
    assert after.revoked
    assert after.version > before.version


async def test_what_is_changed_counts_and_the_rest_stays(store: Store) -> None:
    new = new_key()
    created = await store.writer.create(new)
    before = await store.reader.find([new.digest])
    strict = parse_parameters("strict,num_ctx@llama3.1=8192")
    updated = await store.writer.update("ci", KeyChanges(parameters=strict))
    assert updated == replace(created, parameters=strict)
    key = await store.reader.find([new.digest])
    assert before is not None
    assert key is not None
    assert key.parameters == strict
    assert key.version > before.version
    everything = KeyChanges(owner="", models=("*",), scopes=("read",))
    updated = await store.writer.update(str(new.id), everything)
    assert (updated.owner, updated.models, updated.scopes) == ("", ("*",), ("read",))
    assert updated.parameters == strict


async def test_limits_are_set_changed_and_ended_one_by_one(store: Store) -> None:
    new = replace(new_key(), limits=parse_limits("rpm=60,budget=5000/day"))
    await store.writer.create(new)
    changes: dict[str, int | Budget | None] = {"rpm": None, "concurrency": 2}
    updated = await store.writer.update("ci", KeyChanges(limits=changes))
    key = await store.reader.find([new.digest])
    assert key is not None
    assert key.limits == updated.limits
    assert str(key.limits) == "concurrency=2,budget=5000/day"
    await store.writer.update("ci", KeyChanges(owner="somebody"))
    assert str((await store.writer.show("ci")).limits) == str(key.limits)


async def test_an_expiry_is_set_and_taken_away(store: Store) -> None:
    new = new_key()
    created = await store.writer.create(new)
    tomorrow = datetime.now(UTC) + DAY
    updated = await store.writer.update("ci", KeyChanges(expires=Expiry(tomorrow)))
    assert updated == replace(created, expires_at=tomorrow)
    assert (await found(store, new.secret)).expires_at == tomorrow
    await store.writer.update("ci", KeyChanges(owner="x"))
    assert (await found(store, new.secret)).expires_at == tomorrow
    await store.writer.update("ci", KeyChanges(expires=Expiry(None)))
    assert (await found(store, new.secret)).expires_at is None


async def test_a_key_is_disabled_and_enabled(store: Store) -> None:
    new = new_key()
    await store.writer.create(new)
    versions = []
    for disabled in (True, False):
        record = await store.writer.update("ci", KeyChanges(disabled=disabled))
        key = await found(store, new.secret)
        assert record.disabled is key.disabled is disabled
        versions.append(key.version)
    assert versions[0] < versions[1]


async def test_a_rotated_key_keeps_all_but_its_secret(store: Store) -> None:
    new, secret = new_key(), new_secret()
    created = await store.writer.create(new)
    before = await found(store, new.secret)
    rotated = await store.writer.rotate("ci", secret, DAY)
    assert rotated == replace(created, prefix=secret.prefix)
    after = await found(store, secret)
    assert after == replace(before, digest=secret.digest, version=after.version)
    assert after.version > before.version
    secrets = await store.writer.secrets(new.id)
    assert [s.prefix for s in secrets] == [secret.prefix, new.secret.prefix]


async def test_an_old_secret_ends_after_the_grace(store: Store) -> None:
    new = new_key()
    await store.writer.create(new)
    start = datetime.now(UTC)
    await store.writer.rotate("ci", new_secret(), DAY)
    end = (await found(store, new.secret)).expires_at
    assert end is not None
    assert start + DAY <= end <= datetime.now(UTC) + DAY
    await store.writer.rotate("ci", new_secret(), 2 * DAY)
    assert (await found(store, new.secret)).expires_at == end


async def test_without_a_grace_old_secrets_have_ended_whatever_the_clocks_say(
    store: Store,
) -> None:
    new, second = new_key(), new_secret()
    await store.writer.create(new)
    start = datetime.now(UTC)
    await store.writer.rotate("ci", second, DAY)
    await store.writer.rotate("ci", new_secret(), NO_GRACE)
    assert ((await found(store, new.secret)).expires_at or start) < start
    second_ends = (await found(store, second)).expires_at
    assert second_ends is not None
    assert second_ends <= datetime.now(UTC)


async def test_no_more_than_three_secrets_live_and_none_ends_early_for_that(
    store: Store,
) -> None:
    new = new_key()
    await store.writer.create(new)
    for _ in range(2):
        await store.writer.rotate("ci", new_secret(), DAY)
    with pytest.raises(Refused):
        await store.writer.rotate("ci", new_secret(), DAY)
    first_ends = (await found(store, new.secret)).expires_at
    assert first_ends is not None
    assert first_ends > datetime.now(UTC)
    await store.writer.rotate("ci", new_secret(), NO_GRACE)
    await store.writer.rotate("ci", new_secret(), DAY)


async def test_a_revoked_key_is_not_changed(store: Store) -> None:
    new, secret = new_key(), new_secret()
    await store.writer.create(new)
    await store.writer.revoke("ci")
    for changes in (KeyChanges(owner="x"), KeyChanges(disabled=False)):
        with pytest.raises(Refused):
            await store.writer.update("ci", changes)
    with pytest.raises(Refused):
        await store.writer.rotate("ci", secret, DAY)
    assert await store.reader.find([secret.digest]) is None
    assert (await found(store, new.secret)).owner == "platform"


async def test_revoking_again_changes_nothing(store: Store) -> None:
    new = new_key()
    await store.writer.create(new)
    once = await store.writer.revoke(str(new.id))
    assert once.revoked_at is not None
    assert await store.writer.revoke(str(new.id)) == once


async def test_a_key_is_shown_by_id_or_name(store: Store) -> None:
    new = new_key()
    record = await store.writer.create(new)
    assert record.prefix == new.secret.prefix
    assert await store.writer.show("ci") == record
    assert await store.writer.show(str(new.id)) == record


@pytest.mark.parametrize("wanted", ["nobody", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
async def test_a_key_that_is_not_there_is_refused(store: Store, wanted: str) -> None:
    with pytest.raises(Refused):
        await store.writer.show(wanted)
    with pytest.raises(Refused):
        await store.writer.revoke(wanted)
    with pytest.raises(Refused):
        await store.writer.update(wanted, KeyChanges(disabled=True))
    with pytest.raises(Refused):
        await store.writer.rotate(wanted, new_secret(), DAY)


async def test_a_name_is_given_once_until_its_key_is_revoked(store: Store) -> None:
    await store.writer.create(new_key())
    with pytest.raises(Refused):
        await store.writer.create(new_key())
    await store.writer.revoke("ci")
    second = await store.writer.create(new_key())
    assert await store.writer.show("ci") == second


async def test_a_name_that_several_revoked_keys_had_is_ambiguous(store: Store) -> None:
    for _ in range(2):
        await store.writer.create(new_key())
        await store.writer.revoke("ci")
    with pytest.raises(Refused):
        await store.writer.show("ci")


async def test_keys_are_listed_oldest_first(store: Store) -> None:
    for name in ("b", "a"):
        await store.writer.create(new_key(name))
    assert [record.name async for record in store.writer.list()] == ["b", "a"]


async def test_many_keys_are_stored_together_or_not_at_all(store: Store) -> None:
    there = new_key("there")
    await store.writer.create(there)
    first, taken = new_key("first"), new_key("there")
    copied = replace(new_key("other"), secret=there.secret)
    for keys in ([first, taken], [first, copied]):
        assert await store.writer.first_taken(keys) == 1
        with pytest.raises(Refused):
            await store.writer.create_all(keys)
    with pytest.raises(Refused):
        await store.writer.create_all([first, new_key("first")])
    assert await store.reader.find([first.digest]) is None
    assert await store.writer.first_taken([first]) is None
    await store.writer.create_all([first, new_key("second")])
    assert (await found(store, first.secret)).name == "first"
