"""`authz migrate`: bring the schema up to this version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.cli.environment import async_command, data_dir_option, settings_for

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@data_dir_option
@async_command
async def migrate(data_dir: Path) -> None:
    """Apply the migrations that the database does not have yet."""
    settings = settings_for(data_dir)
    async with connected(settings.database_url.get_secret_value()) as connection:
        applied = await postgres_schema.migrate(connection)
        await postgres_schema.add_months(connection)
    done = ", ".join(f"{version:04}" for version in applied)
    click.echo(f"applied {done}" if applied else "nothing to apply")
