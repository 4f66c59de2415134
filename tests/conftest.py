"""What the tests share: one PostgreSQL, one Redis, one gateway a run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.gateway import Gateway, running_test_gateway
from tests.services import Databases, databases, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# The settings of whoever runs the tests are not those of the tests.
for name in list(os.environ):
    if name.startswith("AUTHZ_") and not name.startswith("AUTHZ_TEST_"):
        del os.environ[name]


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
async def shared_gateway(
    server: Databases, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    logs = tmp_path_factory.mktemp("gateway")
    async with (
        server.fresh() as url,
        running_test_gateway(url, redis_url, logs) as gateway,
    ):
        yield gateway


@pytest.fixture
async def gateway(shared_gateway: Gateway) -> Gateway:
    """The shared gateway with a stand-in that has forgotten everything."""
    await shared_gateway.standin.reset()
    return shared_gateway
