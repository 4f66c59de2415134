"""Run the corpus against any gateway: ``python -m tests.corpus_runner --help``.

Only statuses are compared, for error bodies differ; a refusal is never unsafe.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import click
import httpx

from tests.corpus import judge
from tests.corpus.cases import Case, load
from tests.corpus.exchange import exchange
from tests.upstream import Received

_PATIENCE_S = 5


@dataclass(frozen=True, slots=True)
class Recorder:
    """The stand-in behind the gateway, reached around the gateway."""

    client: httpx.AsyncClient

    async def reset(self) -> None:
        """Forget what was received."""
        (await self.client.delete("/_standin/requests")).raise_for_status()

    async def received(self) -> list[Received]:
        """Return what was received since, oldest first."""
        answer = await self.client.get("/_standin/requests")
        return [_received(record) for record in answer.raise_for_status().json()]


@click.command()
@click.option("--gateway", required=True, help="http://HOST:PORT to test.")
@click.option(
    "--key",
    envvar="CORPUS_KEY",
    required=True,
    help="A key for the model llama3.1 alone; better given as CORPUS_KEY.",
)
@click.option("--recorder", help="http://HOST:PORT of the stand-in behind it.")
def main(gateway: str, key: str, recorder: str | None) -> None:
    """Print a line a case; exit 1 if any of them was unsafe."""
    unsafe = asyncio.run(_run(gateway, key, recorder))
    if unsafe:
        raise SystemExit(1)


async def _run(gateway: str, key: str, recorder_url: str | None) -> int:
    url = urlsplit(gateway)
    address = (url.hostname or "", url.port or 80)
    unsafe = 0
    async with httpx.AsyncClient(base_url=recorder_url or "") as client:
        recorder = Recorder(client) if recorder_url else None
        for case in load():
            verdict, got = await _judged(case, address, key, recorder)
            expected = ", ".join(case.expect)
            click.echo(f"{verdict:6}  {case.name:64}  {expected:40}  {got}")
            unsafe += verdict == "UNSAFE"
    return unsafe


async def _judged(
    case: Case, address: tuple[str, int], key: str, recorder: Recorder | None
) -> tuple[str, str]:
    """Run one case; returns the verdict and what happened."""
    if recorder:
        await recorder.reset()
    patience_s = min(case.patience_s, _PATIENCE_S)
    outcome = await exchange(address, case.request(key), patience_s, in_pieces=False)
    received = await recorder.received() if recorder else []
    faults = judge.forwarding_faults(received, outcome, key) if recorder else []
    verdict = "UNSAFE" if faults else judge.verdict(case, outcome)
    return verdict, "; ".join([", ".join(outcome.steps), *faults])


def _received(record: dict[str, Any]) -> Received:
    fields = "".join(f"{name}: {value}\r\n" for name, value in record["headers"])
    head = f"{record['method']} {record['path']} HTTP/1.1\r\n{fields}\r\n"
    body = base64.b64decode(record.get("body", ""))
    return Received(head.encode("latin-1", "replace"), body)


if __name__ == "__main__":
    main()
