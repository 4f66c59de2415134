"""One run of `authz up`: start, say how to call it, watch, stop."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING

from authz.local.data_dir import claimed
from authz.local.demo import curl_line, make_demo_key
from authz.local.gateway import DEFAULT_UPSTREAM, Gateway, Plan, running_gateway
from authz.local.stack import installed_models, url_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from authz.errors import ChildDied

    Say = Callable[[str], None]

__all__ = ["Plan", "run"]

_ANY_MODEL = "llama3.1"


async def run(plan: Plan, say: Say, stop: asyncio.Event) -> None:
    """Run the gateway until ``stop``. Raises ConfigError, ChildDied."""
    session = asyncio.create_task(_session(plan, say))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({session, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not session.done():
        say("stopping")
        session.cancel()
        await asyncio.wait({session})
    if not session.cancelled():
        session.result()


async def _session(plan: Plan, say: Say) -> None:
    with claimed(plan.data_dir):
        async with running_gateway(plan) as gateway:
            await _introduce(gateway, plan, say)
            say(f"ready {gateway.url}")
            raise await _first_death(gateway)


async def _introduce(gateway: Gateway, plan: Plan, say: Say) -> None:
    file = plan.data_dir / "demo.key"
    new_key = await make_demo_key(gateway.database_url, file)
    if gateway.standin:
        usual = url_of(DEFAULT_UPSTREAM)
        say(f"Nothing answers at {usual}, so a stand-in plays Ollama:")
        say("its answers are made up. Start Ollama first, or name it with --upstream.")
    say(f"logs     {plan.data_dir}/logs")
    say(f"metrics  {gateway.metrics_urls}")
    if new_key is None:
        say(f"key      in {file}")
    else:
        say(f"key      {new_key}  (any model, 30 days; kept in {file})")
    models = await installed_models(gateway.places.upstream)
    shown = new_key or f"$(cat {shlex.quote(str(file))})"
    say(f"try      {curl_line(gateway.url, shown, next(iter(models), _ANY_MODEL))}")


async def _first_death(gateway: Gateway) -> ChildDied:
    deaths = [asyncio.ensure_future(child.died()) for child in gateway.children]
    try:
        done, _ = await asyncio.wait(deaths, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for death in deaths:
            death.cancel()
    return done.pop().result()
