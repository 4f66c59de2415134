"""`authz grants`: what the service and the command line need, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from authz.adapters.postgres_grants import MANAGER, SERVICE, grant
from authz.cli.environment import async_command, data_dir_option, settings_for
from authz.cli.store import current_schema

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.option("--service", metavar="ROLE", help="The role of `authz serve`.")
@click.option("--manager", metavar="ROLE", help="The role of `authz keys` and `audit`.")
@data_dir_option
@async_command
async def grants(data_dir: Path, service: str | None, manager: str | None) -> None:
    """Give existing database roles what they need; run it as the tables' owner.

    Run it again after `authz migrate`.
    """
    wanted = {role: to for role, to in ((service, SERVICE), (manager, MANAGER)) if role}
    if not wanted or service == manager:
        msg = "give --service or --manager, or two roles that differ"
        raise click.UsageError(msg)
    async with current_schema(settings_for(data_dir)) as connection:
        for role, privileges in wanted.items():
            granted = await grant(connection, role, privileges)
            click.echo("\n  ".join([f"{role}:", *granted]))
