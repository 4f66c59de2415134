"""`authz serve`: the service alone, as it runs beside Envoy in production."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from authz import log, workers
from authz.cli.environment import async_command, data_dir_option, settings_for

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@data_dir_option
@click.option("--worker", type=int, hidden=True, help="Be this one of several.")
@async_command
async def serve(data_dir: Path, worker: int | None) -> None:
    """Answer Envoy's Check calls until SIGTERM."""
    settings = settings_for(data_dir)
    log.configure(settings.log_level, settings.log_format)
    if worker is None:
        await workers.serve(settings)
    else:
        await workers.serve_as_child(settings, worker)
