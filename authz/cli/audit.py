"""`authz audit`: who changed which key, and how."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from authz.adapters import postgres_audit
from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.cli import options
from authz.cli.environment import async_command, data_dir_option, settings_for
from authz.cli.store import current_schema
from authz.cli.tables import print_array, print_table
from authz.ports import rfc3339

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from authz.adapters.postgres_audit import Event

_HEADING = ("AT", "ACTOR", "ROLE", "ACTION", "KEY", "CHANGE")


@click.command()
@click.option("--key", metavar="ID", callback=options.key, help="Of this key alone.")
@click.option("--since", callback=options.since, help="How far back, as in 7d.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@data_dir_option
@async_command
async def audit(
    data_dir: Path, key: str | None, since: datetime | None, as_json: bool
) -> None:
    """Show who changed which key, and how, oldest first. ID is an id or a name."""
    async with current_schema(settings_for(data_dir)) as connection:
        key_id = (await PostgresKeyWriter(connection).show(key)).id if key else None
        events = postgres_audit.events(connection, key_id, since)
        if as_json:
            await print_array(_to_json(event) async for event in events)
        else:
            await print_table(_HEADING, (_row(event) async for event in events))


def _to_json(event: Event) -> dict[str, object]:
    return {
        "id": event.id,
        "at": rfc3339(event.at),
        "actor": event.actor,
        "database_role": event.database_role,
        "action": event.action,
        "key_id": str(event.key_id),
        "before": event.before,
        "after": event.after,
    }


def _row(event: Event) -> tuple[str, ...]:
    return (
        rfc3339(event.at) or "",
        event.actor,
        event.database_role,
        event.action,
        (event.after or {}).get("name", str(event.key_id)),
        _difference(event),
    )


def _difference(event: Event) -> str:
    """Say what was changed; of a new key, what is set."""
    before, after = event.before or {}, event.after or {}
    return "; ".join(
        f"{field} {json.dumps(before[field])} -> {json.dumps(value)}"
        if field in before
        else f"{field} {json.dumps(value)}"
        for field, value in after.items()
        if value != before.get(field)
    )
