"""`authz usage`: how many requests and tokens, by key, owner, model or day."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from authz.adapters.postgres_key_writer import PostgresKeyWriter
from authz.adapters.postgres_usage_report import GROUPS, Wanted, usage_by
from authz.cli import options
from authz.cli.environment import async_command, data_dir_option, settings_for
from authz.cli.store import current_schema
from authz.cli.tables import print_array, print_table
from authz.core.names import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from authz.adapters.postgres_usage_report import Sums

_NUMBERS = (
    *("requests", "input_tokens", "output_tokens", "estimated", "failed", "aborted"),
    *("mean_duration_ms", "mean_first_byte_ms"),
)


class Given(TypedDict):
    """The options that say which requests are wanted."""

    owner: str | None
    model: str | None
    since: datetime | None


def _model(_context: object, _option: object, text: str | None) -> str | None:
    """Read a model as it is recorded: by its canonical name."""
    name = text and canonical(text)
    if name is None or isinstance(name, str):
        return name
    msg = f"--model: {text!r} is no model name"
    raise click.UsageError(msg)


@click.command()
@click.option("--key", metavar="ID", callback=options.key, help="Of this key alone.")
@click.option("--owner", callback=options.owner, help="Of this owner's keys alone.")
@click.option("--model", callback=_model, help="With this model alone.")
@click.option("--since", callback=options.since, help="How far back, as in 7d.")
@click.option("--by", type=click.Choice(list(GROUPS)), default="key", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@data_dir_option
@async_command
async def usage(
    data_dir: Path, key: str | None, by: str, as_json: bool, **given: Unpack[Given]
) -> None:
    """Show what was used, by whole hours in which requests began.

    ID is an id or a name. ESTIMATED are the requests whose tokens are, FAILED and
    ABORTED (by the client) those that ended so; times are means.
    """
    async with current_schema(settings_for(data_dir)) as connection:
        key_id = (await PostgresKeyWriter(connection).show(key)).id if key else None
        rows = usage_by(connection, by, Wanted(key_id, **given))
        if as_json:
            await print_array(dict(_fields(by, row)) async for row in rows)
        else:
            names = [by, *(["name"] if by == "key" else []), *_NUMBERS]
            heading = [name.replace("_", " ").upper() for name in names]
            cells = (_cells(by, row) async for row in rows)
            await print_table(heading, cells)


def _fields(by: str, row: Sums) -> Iterator[tuple[str, object]]:
    yield by, row["group"] and str(row["group"])
    if by == "key":
        yield "name", row["name"]
    yield from ((name, row[name]) for name in _NUMBERS)


def _cells(by: str, row: Sums) -> tuple[str, ...]:
    return tuple("-" if cell is None else str(cell) for _, cell in _fields(by, row))
