"""Which of these tests can run here: some need programs that not every machine has."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gateway import running_test_gateway, standin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Gateway, Standin, Stores

NODE_MODULES = Path(os.environ.get("AUTHZ_TEST_NODE_MODULES", "/nonexistent"))
_MISSING = {
    "curl": "" if shutil.which("curl") else "there is no curl on PATH",
    "node": ""
    if shutil.which("node") and (NODE_MODULES / "ollama").is_dir()
    else "AUTHZ_TEST_NODE_MODULES names no folder with Node.js's ollama package",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Pass over a test whose optional program is missing, and say which."""
    for marker in item.iter_markers():
        if reason := _MISSING.get(marker.name):
            pytest.skip(reason)


@pytest.fixture
def node_modules() -> Path:
    """Where Node.js's packages are; only for tests that are marked `node`."""
    return NODE_MODULES


@pytest.fixture(scope="session")
async def shared_gateway(
    stores: Stores, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway[Standin]]:
    """A gateway that counts limits by itself: a slow Redis would let one more pass."""
    alone, logs = replace(stores, redis_url=""), tmp_path_factory.mktemp("clients")
    async with (
        standin(logs) as (control, socket),
        running_test_gateway(alone, control, socket, logs) as gateway,
    ):
        yield gateway
