"""How LiteLLM's proxy is run: in a venv of its own, without calls to the outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CONFIG = Path(__file__).with_suffix(".yaml")
_VENV = Path(__file__).parents[2] / ".venv-peers"


def version() -> str | None:
    """Return which is installed; None if none is."""
    found = _VENV.glob("lib/python*/site-packages/litellm-*.dist-info")
    return next((path.stem.removeprefix("litellm-") for path in found), None)


def write_config(path: Path, upstream: int) -> None:
    """Write its configuration before a model server on a port of this machine."""
    config = yaml.safe_load(_CONFIG.read_text())
    model = config["model_list"][0]["litellm_params"]
    model["api_base"] = f"http://127.0.0.1:{upstream}/v1"
    path.write_text(yaml.safe_dump(config))


def command(config: Path, port: int) -> Sequence[str]:
    """Return the command that runs it: one worker, as all that it is compared with."""
    return (
        str(_VENV / "bin" / "litellm"),
        *("--config", str(config)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--num_workers", "1"),
    )


def environment(home: Path, master_key: str) -> Mapping[str, str]:
    """Return all that it gets of an environment."""
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "LITELLM_MASTER_KEY": master_key,
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        # Otherwise it asks the internet for prices of models.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
