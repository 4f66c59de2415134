"""What the tests of one process share: one PostgreSQL, one Redis, one gateway."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests import secrecy
from tests.gateway import (
    Gateway,
    Standin,
    Stores,
    own_gateway,
    running_test_gateway,
    standin,
)
from tests.services import Databases, databases, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.upstream import RawUpstream

# The settings of whoever runs the tests are not those of the tests.
for name in list(os.environ):
    if name.startswith("AUTHZ_") and not name.startswith("AUTHZ_TEST_"):
        del os.environ[name]


# How long one example takes says how busy the machine is. What has to be quick has
# a test that says how quick.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def nothing_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Look at what all tests of this process logged; made first, so it ends last."""
    yield
    secrecy.assert_nothing_leaked(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
async def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Databases]:
    async with databases(tmp_path_factory.mktemp("postgres")) as found:
        yield found


@pytest.fixture(scope="session")
async def redis_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def database_url(server: Databases) -> AsyncIterator[str]:
    async with server.fresh() as url:
        yield url


@pytest.fixture(scope="session")
async def stores(server: Databases, redis_url: str) -> AsyncIterator[Stores]:
    """The stores that the shared gateways share."""
    async with server.fresh() as url:
        yield Stores(url, redis_url)


@pytest.fixture(scope="session")
async def shared_gateway(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway[Standin]]:
    logs = tmp_path_factory.mktemp("gateway")
    async with (
        standin(logs) as (control, socket),
        running_test_gateway(stores, control, socket, logs) as gateway,
    ):
        yield gateway


@pytest.fixture
async def gateway(shared_gateway: Gateway[Standin]) -> Gateway[Standin]:
    """The shared gateway before a stand-in that has forgotten everything."""
    await shared_gateway.upstream.reset()
    return shared_gateway


@pytest.fixture(scope="session")
async def shared_raw_gateway(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway[RawUpstream]]:
    async with own_gateway(stores, tmp_path_factory.mktemp("raw")) as gateway:
        yield gateway


@pytest.fixture
def raw(shared_raw_gateway: Gateway[RawUpstream]) -> Gateway[RawUpstream]:
    """The shared gateway before a model server that answers bytes by script."""
    shared_raw_gateway.upstream.reset()
    return shared_raw_gateway
