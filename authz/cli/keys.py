"""`authz keys`: give out keys, look at them, take them back."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from authz.adapters.postgres import connected
from authz.adapters.postgres_keys import PostgresKeyWriter
from authz.adapters.postgres_schema import check_schema
from authz.cli import options
from authz.cli.environment import async_command, data_dir_option, settings_for
from authz.cli.tables import rfc3339, table
from authz.config import parse_duration
from authz.errors import Refused
from authz.issuing import issue
from authz.ports import KeyChanges

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from authz.config import Settings
    from authz.core.parameters import Parameters
    from authz.ports import KeyRecord, KeyWriter

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


models_option = partial(
    click.option, "--models", callback=options.models, help="PATTERN[,PATTERN…]"
)
scopes_option = partial(click.option, "--scopes", callback=options.scopes)
parameters_option = partial(
    click.option,
    "--parameters",
    callback=options.parameters,
    help="default or strict, [,NAME[@MODELS]=BOUND…]",
)


class Changes(TypedDict):
    """The options of `update`."""

    owner: str | None
    models: tuple[str, ...] | None
    scopes: tuple[str, ...] | None
    parameters: Parameters | None


class Asked(TypedDict):
    """The options of `create`."""

    name: str
    owner: str
    models: tuple[str, ...]
    scopes: tuple[str, ...]
    parameters: Parameters
    expires_at: datetime | None


@click.group()
def keys() -> None:
    """Create, list, show and revoke keys. ID is a key's id or its name."""


@keys.command()
@click.option("--name", required=True, callback=options.name)
@click.option("--owner", default="", callback=options.owner)
@models_option(required=True)
@scopes_option(default="inference,read")
@parameters_option(default="default")
@click.option(
    "--expires", "expires_at", callback=options.expires, help="90d or 2030-01-31"
)
@json_option
@data_dir_option
@async_command
async def create(data_dir: Path, as_json: bool, **asked: Unpack[Asked]) -> None:
    """Make a key and print it, this once: only its digest is stored."""
    settings = settings_for(data_dir)
    _refuse_beyond(settings.key_max_lifetime, asked["expires_at"])
    new, raw_key = issue(**asked)
    async with _writer(settings) as writer:
        record = await writer.create(new)
    if as_json:
        click.echo(json.dumps(_to_json(record) | {"key": raw_key}))
    else:
        click.echo(f"{_details(record)}\n\n{raw_key}")
        click.echo("Keep this key now: it is not shown again.", err=True)


@keys.command(name="list")
@json_option
@data_dir_option
@async_command
async def list_keys(data_dir: Path, as_json: bool) -> None:
    """List all keys, revoked ones too."""
    async with _writer(settings_for(data_dir)) as writer:
        records = await writer.list()
    if as_json:
        click.echo(json.dumps([_to_json(record) for record in records]))
    else:
        heading = ("ID", "NAME", "OWNER", "PREFIX", "STATE", "EXPIRES", "MODELS")
        click.echo(table(heading, [_row(record) for record in records]))


@keys.command()
@click.argument("id_or_name", metavar="ID", callback=options.id_or_name)
@json_option
@data_dir_option
@async_command
async def show(data_dir: Path, id_or_name: str, as_json: bool) -> None:
    """Show one key, and what it may ask of the machine."""
    async with _writer(settings_for(data_dir)) as writer:
        record = await writer.show(id_or_name)
    if as_json:
        in_force = {"parameters_in_force": record.parameters.in_force()}
        click.echo(json.dumps(_to_json(record) | in_force))
    else:
        bounds = list(record.parameters.in_force().items())
        click.echo(f"{_details(record)}\n\n{table(('PARAMETER', 'ALLOWED'), bounds)}")


@keys.command()
@click.argument("id_or_name", metavar="ID", callback=options.id_or_name)
@click.option("--owner", callback=options.owner)
@models_option()
@scopes_option()
@parameters_option()
@json_option
@data_dir_option
@async_command
async def update(
    data_dir: Path, id_or_name: str, as_json: bool, **changes: Unpack[Changes]
) -> None:
    """Change a key; what is not given stays as it is."""
    if all(change is None for change in changes.values()):
        msg = "nothing to change: give --owner, --models, --scopes or --parameters"
        raise click.UsageError(msg)
    async with _writer(settings_for(data_dir)) as writer:
        record = await writer.update(id_or_name, KeyChanges(**changes))
    _print(record, as_json=as_json)


@keys.command()
@click.argument("id_or_name", metavar="ID", callback=options.id_or_name)
@json_option
@data_dir_option
@async_command
async def revoke(data_dir: Path, id_or_name: str, as_json: bool) -> None:
    """End a key for good."""
    async with _writer(settings_for(data_dir)) as writer:
        _print(await writer.revoke(id_or_name), as_json=as_json)


@asynccontextmanager
async def _writer(settings: Settings) -> AsyncIterator[KeyWriter]:
    async with connected(settings.database_url.get_secret_value()) as connection:
        await check_schema(connection)
        yield PostgresKeyWriter(connection)


def _refuse_beyond(longest: str, expires_at: datetime | None) -> None:
    if not longest:
        return
    if expires_at is None or expires_at > datetime.now(UTC) + parse_duration(longest):
        msg = f"AUTHZ_KEY_MAX_LIFETIME asks for --expires of at most {longest}"
        raise Refused(msg)


def _print(record: KeyRecord, *, as_json: bool) -> None:
    click.echo(json.dumps(_to_json(record)) if as_json else _details(record))


def _state(record: KeyRecord) -> str:
    if record.revoked_at is not None:
        return "revoked"
    if record.expires_at is not None and record.expires_at <= datetime.now(UTC):
        return "expired"
    return "disabled" if record.disabled else "active"


def _to_json(record: KeyRecord) -> dict[str, object]:
    return {
        "id": str(record.id),
        "name": record.name,
        "owner": record.owner,
        "prefix": record.prefix,
        "state": _state(record),
        "models": list(record.models),
        "scopes": list(record.scopes),
        "parameters": str(record.parameters),
        "expires_at": rfc3339(record.expires_at),
        "created_at": rfc3339(record.created_at),
        "revoked_at": rfc3339(record.revoked_at),
    }


def _row(record: KeyRecord) -> tuple[str, ...]:
    return (
        str(record.id),
        record.name,
        record.owner,
        record.prefix,
        _state(record),
        rfc3339(record.expires_at) or "never",
        ", ".join(record.models),
    )


def _details(record: KeyRecord) -> str:
    lines = [
        (name, ", ".join(value) if isinstance(value, list) else str(value))
        for name, value in _to_json(record).items()
        if value
    ]
    return table(("FIELD", "VALUE"), lines)
