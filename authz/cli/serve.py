"""`authz serve`: the service alone, as it runs beside Envoy in production."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import uvloop

from authz import log, workers
from authz.cli.environment import data_dir_option, settings_for

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@data_dir_option
@click.option("--worker", type=int, hidden=True, help="Be this one of several.")
def serve(data_dir: Path, worker: int | None) -> None:
    """Answer Envoy's Check calls until SIGTERM."""
    settings = settings_for(data_dir)
    log.configure(settings.log_level, settings.log_format)
    if worker is None:
        uvloop.run(workers.serve(settings))
    else:
        uvloop.run(workers.serve_as_child(settings, worker))
