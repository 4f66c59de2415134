"""One process serves on one core; with more workers, one process looks after them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from authz.app import new_registry, run_worker, socket_path
from authz.config import parse_address
from authz.edge.probes import probes
from authz.errors import AuthzError, ConfigError
from authz.metrics import Metrics

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from authz.config import Settings

_GRACE_S = 8.0  # calls, usage and last uses have two each
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_WRONG_SETTINGS = 2  # what the command line ends with, and says why


async def serve(settings: Settings) -> None:
    """Run `authz serve` until SIGTERM or SIGINT. Raises ConfigError, SchemaError."""
    with stop_on_signals() as stop:
        if settings.workers == 1:
            registry = new_registry()
            with probes(*_where(settings, registry)):
                await run_worker(settings, 0, Metrics(registry), stop)
        else:
            await _supervise(settings, stop)


async def serve_as_child(settings: Settings, worker: int) -> None:
    """Run one of several workers; it ends with its supervisor, however that ends."""
    with stop_on_signals() as stop:
        # The supervisor never writes: readable means that it has closed the pipe.
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
        await run_worker(settings, worker, Metrics(CollectorRegistry()), stop)


async def _supervise(settings: Settings, stop: asyncio.Event) -> None:
    with ExitStack() as stack:
        samples = stack.enter_context(tempfile.TemporaryDirectory(prefix="authz-"))
        registry = new_registry()
        MultiProcessCollector(registry, path=samples)  # type: ignore[no-untyped-call] # theirs
        stack.enter_context(probes(*_where(settings, registry)))
        children = [await _start(n, samples) for n in range(settings.workers)]
        try:
            await _first_to_end(stop.wait(), *(child.wait() for child in children))
        finally:
            await _end(children)
    if any(child.returncode == _WRONG_SETTINGS for child in children):
        msg = "a worker cannot serve with these settings: its own line says why"
        raise ConfigError(msg)
    if not stop.is_set():
        msg = "a worker has ended by itself"
        raise AuthzError(msg)


def _where(
    settings: Settings, registry: CollectorRegistry
) -> tuple[tuple[str, int], CollectorRegistry, list[Path]]:
    sockets = [socket_path(settings, worker) for worker in range(settings.workers)]
    return parse_address(settings.metrics_listen), registry, sockets


async def _start(worker: int, samples: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "authz", "serve", "--worker", str(worker)),
        stdin=asyncio.subprocess.PIPE,
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": samples},
        start_new_session=True,  # Ctrl-C is for the supervisor
    )


async def _first_to_end(*awaitables: Coroutine[None, None, object]) -> None:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _end(children: list[Process]) -> None:
    for child in children:
        if child.returncode is None:
            child.terminate()
    for child in children:
        try:
            await asyncio.wait_for(child.wait(), _GRACE_S)
        except TimeoutError:
            child.kill()
            await child.wait()


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM or SIGINT sets; after the block they do nothing.

    A process that is ending by itself must not be cut short by being told to: it
    would lose its own last line and exit status.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        # Blocked meanwhile: a removed handler is the default one, which kills.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, _do_nothing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _do_nothing(_number: int, _frame: object) -> None:
    """Unlike SIG_IGN, a handler is not inherited by what this process starts."""
