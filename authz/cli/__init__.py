"""The command line. Errors are one line; 1 is refused, 2 is wrong use or settings."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from authz.errors import AuthzError, ConfigError, SchemaError

_COMMANDS = (
    "audit",
    "check-envoy",
    "grants",
    "healthcheck",
    "keys",
    "migrate",
    "serve",
    "up",
    "usage",
)


class _Commands(click.Group):
    """Commands, each in the module of its name, imported when it is called.

    What `serve` needs takes longer to import than `keys` to do its work.
    """

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names of all."""
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import a command; for a name that none has, all: one may be meant."""
        for found in (name,) if name in _COMMANDS else _COMMANDS:
            name_in_code = found.replace("-", "_")
            module = import_module(f"authz.cli.{name_in_code}")
            self.add_command(getattr(module, name_in_code))
        return super().get_command(context, name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="authz")
def cli() -> None:
    """Say who may call Ollama, and with which models: an Envoy ext_authz service."""


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
