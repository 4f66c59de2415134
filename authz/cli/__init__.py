"""The command line. Errors are one line; 1 is refused, 2 is wrong use or settings."""

from __future__ import annotations

import sys

import click

from authz.cli.audit import audit
from authz.cli.grants import grants
from authz.cli.healthcheck import healthcheck
from authz.cli.keys import keys
from authz.cli.migrate import migrate
from authz.cli.serve import serve
from authz.cli.up import up
from authz.errors import AuthzError, ConfigError, SchemaError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="authz")
def cli() -> None:
    """Say who may call Ollama, and with which models: an Envoy ext_authz service."""


for command in (serve, up, keys, audit, migrate, grants, healthcheck):
    cli.add_command(command)


def run() -> None:
    """Run the command line and end the process with its status."""
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except click.Abort:
        _fail("interrupted", 130)
    except (ConfigError, SchemaError) as error:
        _fail(str(error), 2)
    except AuthzError as error:
        _fail(str(error) or type(error).__name__, 1)


def _fail(message: str, status: int) -> None:
    click.echo(f"authz: {message}", err=True)
    sys.exit(status)
