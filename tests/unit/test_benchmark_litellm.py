"""LiteLLM is set up for the same model server, and calls nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from benchmarks.peers import litellm

if TYPE_CHECKING:
    import pytest


def test_it_stands_before_the_model_server_of_all(tmp_path: Path) -> None:
    path = tmp_path / "litellm.yaml"
    litellm.write_config(path, 4321)
    config = yaml.safe_load(path.read_text())
    (model,) = config["model_list"]
    assert model["litellm_params"]["api_base"] == "http://127.0.0.1:4321/v1"
    assert config["litellm_settings"]["telemetry"] is False


def test_it_asks_the_internet_for_nothing_and_gets_no_secret_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    given = litellm.environment(Path("/nowhere"), "sk-master")
    assert given["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert "a secret" not in given.values()


def test_it_has_one_worker_as_all_have() -> None:
    command = litellm.command(Path("config.yaml"), 4321)
    assert command[-2:] == ("--num_workers", "1")
