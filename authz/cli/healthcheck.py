"""`authz healthcheck`: exit 0 when the service is ready; for probes."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

import click

from authz.cli.environment import data_dir_option, settings_for
from authz.config import parse_address
from authz.errors import Refused

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 3.0


@click.command()
@data_dir_option
def healthcheck(data_dir: Path) -> None:
    """Ask the running service whether it is ready."""
    host, port = parse_address(settings_for(data_dir).metrics_listen)
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
    click.echo("ready")
