"""`authz healthcheck`: exit 0 when the service is ready; for probes, and for people."""

from __future__ import annotations

import asyncio
import http.client
from typing import TYPE_CHECKING

import click

from authz.cli.environment import data_dir_option, settings_for, sockets_of
from authz.config import parse_address
from authz.errors import Refused

if TYPE_CHECKING:
    from pathlib import Path

    from authz.config import Settings

_TIMEOUT_S = 3.0


def _address(_context: object, option: click.Parameter, text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except ValueError as error:
        msg = f"--{option.name}: {error}"
        raise click.UsageError(msg) from None


@click.command()
@data_dir_option
@click.option("--deep", is_flag=True, help="Look for what stands open, too.")
@click.option(
    "--ollama",
    metavar="HOST:PORT",
    default="127.0.0.1:11434",
    show_default=True,
    callback=_address,
    help="Where --deep tries to reach Ollama around Envoy.",
)
def healthcheck(data_dir: Path, *, deep: bool, ollama: tuple[str, int]) -> None:
    """Ask the running service whether it is ready.

    With --deep, say in one line each what was looked at from here: ok, open or
    unknown; status 1 if anything is open.
    """
    settings = settings_for(data_dir)
    if deep:
        there = {"listen": sockets_of(settings, data_dir)}
        _look_around(settings.model_copy(update=there), ollama)
    _ask(*parse_address(settings.metrics_listen))
    click.echo("ready")


def _look_around(settings: Settings, ollama: tuple[str, int]) -> None:
    # What this needs takes longer to import than a probe takes.
    from authz.cli.deep_check import look_around  # noqa: PLC0415
    from authz.cli.observation import State  # noqa: PLC0415

    findings = asyncio.run(look_around(settings, ollama))
    for finding in findings:
        click.echo(f"{finding.state:8}{finding.text}")
    count = sum(finding.state == State.OPEN for finding in findings)
    if count:
        msg = f"{count} open"
        raise Refused(msg)


def _ask(host: str, port: int) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        msg = f"no answer at {host}:{port}: {type(error).__name__}"
        raise Refused(msg) from None
    finally:
        connection.close()
    if status != http.client.OK:
        msg = "not ready"
        raise Refused(msg)
