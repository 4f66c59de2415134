"""How every benchmark runs as a program, whole or a part alone."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import click

from authz.errors import AuthzError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Coroutine


def outcome_of(run: Coroutine[None, None, str]) -> str:
    """Run to the end, print what came out and return it; exit where it failed."""
    # As Ctrl-C does: asyncio then unwinds, and every program started here ends.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        text = asyncio.run(run)
    except AuthzError as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    click.echo(text, nl=False)
    return text
