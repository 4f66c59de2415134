"""Which of these tests can run here: some need programs that not every machine has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

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
