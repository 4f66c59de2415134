"""A Redis Cluster loses one of its three masters."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from authz.core.credential import ENTROPY_BYTES, mint
from tests import rows
from tests.chaos.redis_cluster import cluster_url, running_cluster, wait_until_noticed
from tests.chaos.replicas import (
    change,
    digest,
    keys,
    load,
    replica_on,
    served_from,
    uses_redis,
)
from tests.failing import running_site
from tests.gateway import Stores
from tests.rows import assert_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.chaos.redis_cluster import Node
    from tests.failing import Site

pytestmark = pytest.mark.chaos

MANY = 60  # in three parts of the cluster, so that each gets enough of them
LONG = {"AUTHZ_CACHE_TTL_S": "300"}


@pytest.fixture(scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with running_site(tmp_path_factory.mktemp("cluster")) as site:
        yield site


def has(node: Node, key: str) -> bool:
    return node.holds(digest(key))


async def key_of(site: Site, node: Node) -> str:
    """Create a key whose record has its place on a node."""
    while not has(node, key := await site.new_key()):
        pass
    return key


@pytest.mark.parametrize(
    ("number", "full_coverage", "source"),
    # The driver prefers the master of the first slot for what has no key.
    [(0, False, "redis"), (1, False, "redis"), (1, True, "postgres")],
    ids=["first", "second", "second, and the others refuse"],
)
async def test_keys_go_on_while_a_master_of_redis_is_lost(
    site: Site,
    tmp_path: Path,
    recovered: Callable[[str, float], None],
    number: int,
    full_coverage: bool,
    source: str,
) -> None:
    aged = await keys(site, MANY)
    async with running_cluster(tmp_path, full_coverage=full_coverage) as nodes:
        stores = Stores(site.postgres.url, cluster_url(nodes), LONG)
        async with (
            replica_on(stores, tmp_path / "one") as one,
            replica_on(stores, tmp_path / "other") as other,
        ):
            fresh, (revoked, refused) = await keys(site, 5), await keys(site, 2)
            noticing = [aged.pop() for _ in range(10)]
            lost = nodes[number]
            for key in (*fresh, *aged, *noticing, revoked, refused):
                assert await one.status(key) == 200
            assert await other.status(revoked) == 200
            async with load(one, fresh) as statuses:
                await lost.kill()
                for key in noticing:
                    assert await other.status(key) == 200
                await wait_until_noticed(lost, nodes, "fail" if full_coverage else "ok")
                await served_from(source, other, [k for k in aged if not has(lost, k)])
                await served_from("postgres", other, [k for k in aged if has(lost, k)])
                for key in (revoked, refused):
                    await site.revoke(key)
                    await change(one, key, 200, 401)
                    await change(other, key, 200, 401)
                stranger = mint(secrets.token_bytes(ENTROPY_BYTES))
                assert_row((await one.ask(stranger))[0], rows.UNAUTHORIZED)
                await lost.start()
                used = await uses_redis(one, lambda: key_of(site, lost), lost.names)
                recovered("Redis is used", used)
            assert set(statuses) == {200}, statuses
