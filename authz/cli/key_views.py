"""How keys are shown: to people as tables, to programs as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from authz.cli.tables import print_array, print_table, table
from authz.ports import rfc3339

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from authz.core.limits import Limits
    from authz.ports import KeyRecord, SecretRecord

_LIST = ("ID", "NAME", "OWNER", "PREFIX", "STATE", "EXPIRES", "LAST USED", "MODELS")
_SECRETS = ("SECRET", "CREATED", "EXPIRES", "LAST USED")


def print_key(record: KeyRecord, *, as_json: bool) -> None:
    """Print one key."""
    click.echo(json.dumps(_to_json(record)) if as_json else _details(record))


def print_new(record: KeyRecord, raw_key: str, *, as_json: bool) -> None:
    """Print a key with its new secret: the only time that it is shown."""
    if as_json:
        click.echo(json.dumps(_to_json(record) | {"key": raw_key}))
    else:
        click.echo(f"{_details(record)}\n\n{raw_key}")
        click.echo("Keep this key now: it is not shown again.", err=True)


def print_whole(
    record: KeyRecord, secrets: Sequence[SecretRecord], *, as_json: bool
) -> None:
    """Print a key, its secrets, and what it may ask of the machine."""
    bounds = record.parameters.in_force()
    if as_json:
        more = {"parameters_in_force": bounds, "secrets": list(map(_secret, secrets))}
        click.echo(json.dumps(_to_json(record) | more))
    else:
        rows = [tuple(cell or "never" for cell in _secret(s).values()) for s in secrets]
        in_force = table(("PARAMETER", "ALLOWED"), list(bounds.items()))
        click.echo(f"{_details(record)}\n\n{table(_SECRETS, rows)}\n\n{in_force}")


async def print_list(records: AsyncIterator[KeyRecord], *, as_json: bool) -> None:
    """Print keys."""
    if as_json:
        await print_array(_to_json(record) async for record in records)
    else:
        await print_table(_LIST, (_row(record) async for record in records))


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
        **_limits(record.limits),
        "expires_at": rfc3339(record.expires_at),
        "created_at": rfc3339(record.created_at),
        "last_used_at": rfc3339(record.last_used_at),
        "revoked_at": rfc3339(record.revoked_at),
    }


def _limits(limits: Limits) -> dict[str, int | str | None]:
    """Name each as the option of `keys create` that sets it."""
    return {
        "rpm": limits.rpm,
        "tpm": limits.tpm,
        "concurrency": limits.concurrency,
        "budget": None if limits.budget is None else str(limits.budget),
    }


def _secret(secret: SecretRecord) -> dict[str, str | None]:
    return {
        "prefix": secret.prefix,
        "created_at": rfc3339(secret.created_at),
        "expires_at": rfc3339(secret.expires_at),
        "last_used_at": rfc3339(secret.last_used_at),
    }


def _row(record: KeyRecord) -> tuple[str, ...]:
    return (
        str(record.id),
        record.name,
        record.owner,
        record.prefix,
        _state(record),
        rfc3339(record.expires_at) or "never",
        rfc3339(record.last_used_at) or "never",
        ", ".join(record.models),
    )


def _details(record: KeyRecord) -> str:
    lines = [
        (name, ", ".join(value) if isinstance(value, list) else str(value))
        for name, value in _to_json(record).items()
        if value
    ]
    return table(("FIELD", "VALUE"), lines)
