"""`python -m benchmarks`: measure, print the tables, keep them in results/.

Subjects take turns within a round, so that noise hits all of them alike.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from authz.config import parse_address
from benchmarks.bodies import measure_bodies
from benchmarks.command import outcome_of
from benchmarks.comparison import measure_comparison
from benchmarks.floods import measure_floods
from benchmarks.load import measure_crowds
from benchmarks.patterns import measure_patterns
from benchmarks.results import (
    MEASURES,
    Results,
    load_latest,
    measure_all,
    page,
    part,
    save,
    write_pages,
)
from benchmarks.revocation import measure_revocation
from benchmarks.scale import measure_scale
from benchmarks.startup import measure_startup
from benchmarks.strangers import measure_strangers
from benchmarks.streams import measure_streams
from benchmarks.subjects import ALL
from benchmarks.surroundings import look_around
from benchmarks.wrk import LoadFailed, find_wrk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from authz.local.envoy import Address

_ROUNDS_OF_OTHERS = 3
_PEER = re.compile("[a-z0-9]+(-[a-z0-9]+)*")


def _addresses(
    _context: object, _option: object, given: Sequence[str]
) -> Mapping[str, Address]:
    try:
        pairs = [text.rsplit("=", 1) for text in given]
        peers = {name: parse_address(address) for name, address in pairs}
    except ValueError:
        msg = "--peer takes NAME=HOST:PORT, as in opa=127.0.0.1:9191"
        raise click.UsageError(msg) from None
    taken = {name.lower() for name in ALL}
    if len(peers) < len(given) or taken & peers.keys():
        msg = "--peer takes a NAME that no other subject has"
        raise click.UsageError(msg)
    if not all(map(_PEER.fullmatch, peers)):
        msg = "a NAME of --peer has small letters, digits and single hyphens"
        raise click.UsageError(msg)
    return peers


@click.command()
@click.option(
    "--rounds",
    default=4,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of the comparison; of others at most as many.",
)
@click.option(
    "--seconds",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Length of one sample.",
)
@click.option(
    "--peer",
    "others",
    multiple=True,
    callback=_addresses,
    metavar="NAME=HOST:PORT",
    help="Compare an ext_authz service, too, that runs already.",
)
@click.option(
    "--only", type=click.Choice(MEASURES), help="Measure this, and keep no report."
)
@click.option("--render", is_flag=True, help="Make the pages again of the last run.")
def main(
    rounds: int,
    seconds: int,
    others: Mapping[str, Address],
    only: str | None,
    *,
    render: bool,
) -> None:
    """Measure what the gateway costs, how fast it revokes, and a million keys."""
    if render:
        write_pages(load_latest())
        return
    outcome_of(_run(rounds, seconds, others, only))


async def _run(
    rounds: int, seconds: int, others: Mapping[str, Address], only: str | None
) -> str:
    fewer = min(rounds, _ROUNDS_OF_OTHERS)
    measures: Mapping[str, Callable[[], Awaitable[Any]]] = {
        "comparison": lambda: measure_comparison(rounds, seconds, others),
        "startup": measure_startup,
        "bodies": lambda: measure_bodies(fewer),
        "patterns": lambda: measure_patterns(fewer),
        "streams": lambda: measure_streams(fewer, seconds),
        "load": measure_crowds,
        "revocation": measure_revocation,
        "scale": measure_scale,
        "strangers": measure_strangers,
        "floods": measure_floods,
    }
    find_wrk()
    results = Results(look_around())
    names = [only] if only else MEASURES
    await measure_all(results, {name: measures[name] for name in names})
    results.surroundings = results.surroundings.ended()
    # Without the comparison, the pages would have less to say than they have.
    if not only and results.comparison:
        save(results)
        write_pages(results)
    report = part(results) if only else page(results)
    if results.failed:
        click.echo(report, nl=False)
        msg = f"failed: {', '.join(results.failed)}"
        raise LoadFailed(msg)
    return report


if __name__ == "__main__":
    main()
