"""`authz check-envoy`: do Envoy's files keep what the gateway promises?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from authz.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from authz.envoy_check.findings import Finding

# More than the linter takes, so that it is the one to say so.
_MAX_BYTES = 5 * 1024 * 1024

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command("check-envoy")
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check_envoy(files: Sequence[Path], as_json: bool) -> None:
    """Look for holes in Envoy's files, which must all be given at once.

    Prints one line for each: where it is, why it matters, how to mend it. The rules
    stand in docs/check-envoy.md. Where Envoy itself is found, it is asked, too.
    """
    linter = _module("authz.envoy_check")
    contents = {str(file): _content(file) for file in files}
    report = linter.check(contents)
    for name in report.passed_over:
        click.echo(f"{name}: not for Envoy, passed over", err=True)
    wanted = {name: contents[name] for name in report.files}
    findings = report.findings
    if report.readable:
        findings = sorted([*findings, *_opinion_of_envoy(wanted)])
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings], indent=2))
    elif findings:
        click.echo("\n".join(map(str, findings)))
    else:
        rules = len(linter.RULES)
        click.echo(f"No findings in {len(wanted)} files by {rules} rules.")
    sys.exit(1 if findings else 0)


def _opinion_of_envoy(contents: Mapping[str, bytes]) -> Sequence[Finding]:
    try:
        binary = _module("authz.local.envoy").envoy_binary()
        validate = _module("authz.envoy_check.validate").validate
        findings: Sequence[Finding] = validate(binary, contents)
    except ConfigError as error:
        click.echo(f"Envoy itself was not asked: {error}", err=True)
        return ()
    return findings


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_BYTES)
    except OSError as error:
        msg = f"{file}: {error.strerror}"
        raise ConfigError(msg) from None


def _module(name: str) -> ModuleType:
    """Import late: the service is also installed without what this needs."""
    try:
        return import_module(name)
    except ImportError as error:
        msg = (
            f"authz check-envoy needs the extra 'check' of this package ({error.name})"
        )
        raise ConfigError(msg) from None
