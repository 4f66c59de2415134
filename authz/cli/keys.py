"""`authz keys`: give out keys, look at them, change them, take them back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar, Unpack

import click

from authz.cli import options
from authz.cli.environment import async_command, data_dir_option, settings_for
from authz.cli.key_import import import_keys
from authz.cli.key_views import print_key, print_list, print_new, print_whole
from authz.cli.store import key_writer, refuse_beyond
from authz.config import load_peppers
from authz.core.limits import Limits
from authz.issuing import issue, issue_secret
from authz.ports import Expiry, KeyChanges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from authz.core.limits import Budget
    from authz.core.parameters import Parameters

P = ParamSpec("P")
T = TypeVar("T")

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


_LIMITS = {
    "rpm": "requests a minute",
    "tpm": "tokens a minute",
    "concurrency": "requests at once",
    "budget": "tokens, N/day or N/month (UTC)",
}


def limits_options(command: Callable[..., T]) -> Callable[..., T]:
    """Add an option for each limit; the command gets those that are given."""

    @wraps(command)
    def with_limits(**given: Any) -> T:  # noqa: ANN401 - the other options
        limits = {name: given.pop(name) for name in _LIMITS}
        some = {name: n or None for name, n in limits.items() if n is not None}
        return command(limits=some, **given)

    for name, text in reversed(_LIMITS.items()):
        option = click.option(f"--{name}", callback=options.limit, help=text)
        with_limits = option(with_limits)
    return with_limits


def one_key(command: Callable[P, None]) -> Callable[P, None]:
    """Add what every command on one key takes."""
    id_or_name = click.argument("id_or_name", metavar="ID", callback=options.id_or_name)
    return id_or_name(json_option(data_dir_option(command)))


class Changes(TypedDict):
    """The options of `update`."""

    owner: str | None
    models: tuple[str, ...] | None
    scopes: tuple[str, ...] | None
    parameters: Parameters | None
    limits: dict[str, int | Budget | None]
    expires: Expiry | None


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
    """Create, list, show, change and revoke keys. ID is a key's id or its name."""


keys.add_command(import_keys)


@keys.command()
@click.option("--name", required=True, callback=options.name)
@click.option("--owner", default="", callback=options.owner)
@models_option(required=True)
@scopes_option(default=",".join(options.SCOPES))
@parameters_option(default="default")
@limits_options
@click.option(
    "--expires", "expires_at", callback=options.expires, help="90d or 2030-01-31"
)
@json_option
@data_dir_option
@async_command
async def create(
    data_dir: Path,
    as_json: bool,
    limits: dict[str, Any],
    **asked: Unpack[Asked],
) -> None:
    """Make a key and print it, this once: only its digest is stored."""
    settings = settings_for(data_dir)
    refuse_beyond(settings.key_max_lifetime, asked["expires_at"], "--expires")
    peppers = load_peppers(settings)
    new, raw_key = issue(peppers=peppers, limits=Limits(**limits), **asked)
    async with key_writer(settings, peppers) as writer:
        record = await writer.create(new)
        # Before the connection is closed, which may fail.
        print_new(record, raw_key, as_json=as_json)


@keys.command(name="list")
@json_option
@data_dir_option
@async_command
async def list_keys(data_dir: Path, as_json: bool) -> None:
    """List all keys, revoked ones too."""
    async with key_writer(settings_for(data_dir)) as writer:
        await print_list(writer.list(), as_json=as_json)


@keys.command()
@one_key
@async_command
async def show(data_dir: Path, id_or_name: str, as_json: bool) -> None:
    """Show one key, its secrets, and what it may ask of the machine."""
    async with key_writer(settings_for(data_dir)) as writer:
        record = await writer.show(id_or_name)
        secrets = await writer.secrets(record.id)
    print_whole(record, secrets, as_json=as_json)


@keys.command()
@click.option("--owner", callback=options.owner)
@models_option()
@scopes_option()
@parameters_option()
@limits_options
@click.option("--expires", callback=options.expiry, help="90d, 2030-01-31 or never")
@one_key
@async_command
async def update(
    data_dir: Path, id_or_name: str, as_json: bool, **changes: Unpack[Changes]
) -> None:
    """Change a key; what is not given stays as it is."""
    if all(change in (None, {}) for change in changes.values()):
        msg = "nothing to change: give an option that `authz keys update -h` names"
        raise click.UsageError(msg)
    settings = settings_for(data_dir)
    if changes["expires"]:
        longest = settings.key_max_lifetime
        refuse_beyond(longest, changes["expires"].at, "--expires")
    async with key_writer(settings) as writer:
        record = await writer.update(id_or_name, KeyChanges(**changes))
    print_key(record, as_json=as_json)


@keys.command()
@one_key
@async_command
async def disable(data_dir: Path, id_or_name: str, as_json: bool) -> None:
    """Refuse a key until it is enabled again."""
    async with key_writer(settings_for(data_dir)) as writer:
        record = await writer.update(id_or_name, KeyChanges(disabled=True))
    print_key(record, as_json=as_json)


@keys.command()
@one_key
@async_command
async def enable(data_dir: Path, id_or_name: str, as_json: bool) -> None:
    """Accept a key again that was disabled."""
    async with key_writer(settings_for(data_dir)) as writer:
        record = await writer.update(id_or_name, KeyChanges(disabled=False))
    print_key(record, as_json=as_json)


@keys.command()
@click.option(
    "--grace",
    callback=options.grace,
    default="24h",
    show_default=True,
    help="How long the old secrets still hold; 0 ends them now.",
)
@one_key
@async_command
async def rotate(
    data_dir: Path, id_or_name: str, as_json: bool, grace: timedelta
) -> None:
    """Give a key a new secret and print it, this once; all else stays."""
    settings = settings_for(data_dir)
    longest = settings.key_max_lifetime
    refuse_beyond(longest, datetime.now(UTC) + grace, "a --grace")
    peppers = load_peppers(settings)
    secret, raw_key = issue_secret(peppers)
    async with key_writer(settings, peppers) as writer:
        expires_at = (await writer.show(id_or_name)).expires_at
        refuse_beyond(longest, expires_at, "`authz keys update --expires` first,")
        record = await writer.rotate(id_or_name, secret, grace)
        print_new(record, raw_key, as_json=as_json)


@keys.command()
@one_key
@async_command
async def revoke(data_dir: Path, id_or_name: str, as_json: bool) -> None:
    """End a key for good."""
    async with key_writer(settings_for(data_dir)) as writer:
        record = await writer.revoke(id_or_name)
    print_key(record, as_json=as_json)
