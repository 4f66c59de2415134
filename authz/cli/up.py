"""`authz up`: the whole gateway on this machine, in the foreground."""

from __future__ import annotations

import socket
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from authz.cli.environment import async_command, data_dir_option
from authz.config import load_settings, parse_address
from authz.errors import ConfigError
from authz.workers import stop_on_signals

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

Address = tuple[str, int]


def _listen(_context: object, _option: object, text: str) -> Address:
    try:
        host, port = parse_address(text)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if port:
            return str(found[0][4][0]), port
    except (ValueError, OSError):
        pass
    msg = "--listen takes host:port, as in 127.0.0.1:8080"
    raise click.UsageError(msg)


def _upstream(_context: object, _option: object, text: str | None) -> Address | None:
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        plain = parts.scheme == "http" and not (parts.path.strip("/") or parts.query)
        if plain:
            return parse_address(parts.netloc if parts.port else f"{parts.netloc}:80")
    except ValueError:
        pass
    msg = "--upstream takes http://host:port"
    raise click.UsageError(msg)


@click.command()
@click.option("--listen", default="127.0.0.1:8080", show_default=True, callback=_listen)
@click.option(
    "--upstream",
    callback=_upstream,
    help="Ollama; http://127.0.0.1:11434 or, if nothing answers there, a stand-in.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True)
@data_dir_option
@async_command
async def up(
    data_dir: Path, listen: Address, upstream: Address | None, workers: int
) -> None:
    """Start PostgreSQL, Redis, the service and Envoy; stop all with Ctrl-C."""
    session = _session_module()
    settings = load_settings()
    metrics_set = "metrics_listen" in settings.model_fields_set
    plan = session.Plan(
        data_dir=data_dir.absolute(),
        listen=listen,
        upstream=upstream,
        workers=workers,
        metrics=parse_address(settings.metrics_listen) if metrics_set else None,
        database_url=settings.database_url.get_secret_value(),
        redis_url=settings.redis_url.get_secret_value(),
    )
    with stop_on_signals() as stop:
        await session.run(plan, click.echo, stop)


def _session_module() -> ModuleType:
    """Import late: the service is also installed without what this needs."""
    try:
        return import_module("authz.local.session")
    except ImportError as error:
        msg = f"authz up needs the extra 'local' of this package ({error.name})"
        raise ConfigError(msg) from None
