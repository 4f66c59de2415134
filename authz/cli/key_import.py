"""`authz keys import`: keys that exist already, from standard input, all or none."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, BinaryIO

import click

from authz.cli import options
from authz.cli.environment import async_command, data_dir_option, settings_for
from authz.cli.store import key_writer, refuse_beyond
from authz.config import load_peppers
from authz.core.body import decode_strictly
from authz.core.credential import read_credential
from authz.core.model import Deny
from authz.errors import Refused
from authz.issuing import new_key, secret_of
from authz.ports import NewSecret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from authz.core.credential import Peppers
    from authz.ports import NewKey

    Fields = Mapping[str, object]

_LONGEST_LINE = 64 * 1024
_MOST_KEYS = 100_000
_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
_PREFIX = re.compile(r"(nz_[0-9A-Za-z]{8})?")
_FIELDS = {
    "name": "a name as in `authz keys create`",
    "owner": "an owner as in `authz keys create`",
    "models": "a list of model names and patterns",
    "scopes": "a list of scopes",
    "parameters": "parameters as in `authz keys create`",
    "limits": "limits as in rpm=60,tpm=100000,concurrency=4,budget=1000000/day",
    "expires_at": "a time in the future, or null",
}
_SECRET_FIELDS = ("key", "digest", "prefix")


class _WrongLineError(ValueError):
    """A line is not what it should be; the text never quotes it."""


@click.command(name="import")
@data_dir_option
@async_command
async def import_keys(data_dir: Path) -> None:
    """Store existing keys: JSON objects on standard input, one a line; all or none.

    name, models, and either key (a raw key) or digest (its SHA-256 in hexadecimal,
    then perhaps prefix); perhaps owner, scopes, parameters, limits, expires_at.
    """
    settings = settings_for(data_dir)
    peppers = load_peppers(settings)
    found = _read(sys.stdin.buffer, settings.key_max_lifetime, peppers)
    keys = list(found.values())
    async with key_writer(settings, peppers) as writer:
        taken = await writer.first_taken(keys)
        if taken is not None:
            msg = f"line {list(found)[taken]}: the name or the key is there already"
            raise Refused(msg)
        await writer.create_all(keys)
    click.echo(f"imported {len(keys)} keys")


def _read(file: BinaryIO, longest: str, peppers: Peppers) -> dict[int, NewKey]:
    """Read keys by the number of their line."""
    keys: dict[int, NewKey] = {}
    lines: dict[object, int] = {}
    for number, line in _lines(file):
        try:
            key = _key(_fields(line), peppers)
        except _WrongLineError as error:
            msg = f"line {number}: {error}"
            raise click.UsageError(msg) from None
        refuse_beyond(longest, key.expires_at, "expires_at", f"line {number}: ")
        for what in (key.name, key.digest):
            if lines.setdefault(what, number) != number:
                msg = f"line {number}: the name or the key of line {lines[what]}"
                raise click.UsageError(msg)
        keys[number] = key
    return keys


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if number > _MOST_KEYS or len(line) > _LONGEST_LINE:
            msg = (
                f"line {number}: at most {_MOST_KEYS} lines of {_LONGEST_LINE} bytes "
                "are taken at once"
            )
            raise click.UsageError(msg)
        if line.strip():
            yield number, line


def _fields(line: bytes) -> Fields:
    try:
        fields = decode_strictly(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        msg = "not a JSON object"
        raise _WrongLineError(msg)
    if not {*_FIELDS, *_SECRET_FIELDS}.issuperset(fields):
        msg = f"other fields than {', '.join((*_FIELDS, *_SECRET_FIELDS))}"
        raise _WrongLineError(msg)
    return fields


def _key(fields: Fields, peppers: Peppers) -> NewKey:
    expires_at = fields.get("expires_at")
    return new_key(
        _text("name", options.name, fields.get("name")),
        _secret(fields, peppers),
        owner=_text("owner", options.owner, fields.get("owner", "")),
        models=_list("models", options.models, fields.get("models")),
        scopes=_list("scopes", options.scopes, fields.get("scopes", options.SCOPES)),
        parameters=_text(
            "parameters", options.parameters, fields.get("parameters", "default")
        ),
        limits=_text("limits", options.limits, fields.get("limits", "")),
        expires_at=(
            None
            if expires_at is None
            else _text("expires_at", options.expires, expires_at)
        ),
    )


def _list(field: str, read: Callable[..., Any], value: object) -> Any:  # noqa: ANN401 - what `read` returns
    if not isinstance(value, list):
        raise _wrong(field)
    for text in value:
        if not isinstance(text, str) or "," in text:
            raise _wrong(field)
    return _text(field, read, ",".join(value))


def _text(field: str, read: Callable[..., Any], value: object) -> Any:  # noqa: ANN401 - what `read` returns
    """Read a field as the option of that name; its words quote what was given."""
    if not isinstance(value, str):
        raise _wrong(field)
    try:
        return read(None, click.Option([f"--{field}"]), value)
    except click.UsageError:
        raise _wrong(field) from None


def _wrong(field: str) -> _WrongLineError:
    return _WrongLineError(f"{field} takes {_FIELDS[field]}")


def _secret_of_raw(raw_key: str, peppers: Peppers) -> NewSecret:
    if isinstance(read_credential({"x-api-key": raw_key}, peppers), Deny):
        msg = "the key is not of the form nz_…, or mistyped: no request could use it"
        raise _WrongLineError(msg)
    return secret_of(raw_key, peppers)


def _secret(fields: Fields, peppers: Peppers) -> NewSecret:
    match {name: fields[name] for name in _SECRET_FIELDS if name in fields}:
        case {"key": str(raw_key), **more} if not more:
            return _secret_of_raw(raw_key, peppers)
        case {"digest": str(digest), **more} if "key" not in more:
            prefix = more.get("prefix", "")
            if _DIGEST.fullmatch(digest) and _PREFIX.fullmatch(str(prefix)):
                return NewSecret(bytes.fromhex(digest), str(prefix))
    msg = "either key, or digest (64 hexadecimal digits) and perhaps prefix"
    raise _WrongLineError(msg)
