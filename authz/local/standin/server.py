"""Serve the stand-in: record a request, find its answer, send it as told.

What is answered is in native.py, openai.py, responses.py and anthropic.py; here is no
shape of Ollama but its router's own 404 and 405.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from aiohttp import web

from authz.local.standin.anthropic import ANTHROPIC_ROUTES, anthropic_error
from authz.local.standin.control import Behaviour, Control
from authz.local.standin.native import NATIVE_ROUTES
from authz.local.standin.openai import OPENAI_ROUTES, openai_error
from authz.local.standin.reply import (
    WORDS,
    Call,
    Reply,
    Unanswerable,
    first_tool,
    json_reply,
    read_fields,
)
from authz.local.standin.responses import RESPONSES_ROUTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MAX_BODY = 64 * 1024 * 1024
_MAX_HEADER = 1024 * 1024  # Go's own limit
_ROUTES = {**NATIVE_ROUTES, **OPENAI_ROUTES, **RESPONSES_ROUTES, **ANTHROPIC_ROUTES}


def make_app() -> web.Application:
    """Build a stand-in with a state of its own."""
    control = Control()

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        with control.recorded(request, body):
            behaviour = await control.next_behaviour()
            return await _send(request, _reply(request, body, behaviour), behaviour)

    app = web.Application(client_max_size=_MAX_BODY)
    app.router.add_get("/_standin/requests", control.list_requests)
    app.router.add_delete("/_standin/requests", control.forget_requests)
    app.router.add_put("/_standin/behaviour", control.set_behaviour)
    app.router.add_delete("/_standin/behaviour", control.reset_behaviour)
    app.router.add_route("*", r"/{path:[\s\S]*}", answer)
    return app


def _reply(request: web.Request, body: bytes, behaviour: Behaviour) -> Reply:
    """Return what the behaviour puts in the place of the answer, or the answer."""
    if behaviour.status is not None:
        frames = (behaviour.body.encode(),)
        return Reply(frames, status=behaviour.status, headers=behaviour.headers)
    if behaviour.raw_stream is not None:
        return Reply(behaviour.raw_stream, behaviour.content_type, streamed=True)
    reply = _route(request, body, behaviour)
    if behaviour.error_after_chunks is not None and reply.streamed:
        kept = reply.frames[: behaviour.error_after_chunks]
        return replace(reply, frames=(*kept, reply.failure))
    return reply


def _route(request: web.Request, body: bytes, behaviour: Behaviour) -> Reply:
    """Return Ollama's answer. It routes on the decoded path, as its router does."""
    path = unquote(request.raw_path.partition("?")[0])
    folder, _, last = path.rpartition("/")
    one_model = folder == "/v1/models" and last != ""
    methods, handler = _ROUTES.get(
        "/v1/models/:model" if one_model else path, ((), None)
    )
    if handler is None:
        return Reply((b"404 page not found",), "text/plain", 404)
    if request.method not in methods:
        allow = {"Allow": ", ".join(methods)}
        return Reply((b"405 method not allowed",), "text/plain", 405, allow)
    try:
        fields = read_fields(body) if request.method == "POST" else {"model": last}
        return handler(_call(fields, behaviour))
    except Unanswerable as error:
        return _error(path, error)


def _call(fields: dict[str, Any], behaviour: Behaviour) -> Call:
    tool = first_tool(fields) if behaviour.tool_call else ""
    pieces = ("",) if tool else tuple(islice(cycle(WORDS), behaviour.chunks))
    return Call(fields, pieces, behaviour.error_line, tool)


def _error(path: str, error: Unanswerable) -> Reply:
    if path in ANTHROPIC_ROUTES:
        return anthropic_error(error)
    if path.startswith("/v1/"):
        return openai_error(error)
    return json_reply({"error": error.message}, error.status)


async def _send(
    request: web.Request, reply: Reply, behaviour: Behaviour
) -> web.StreamResponse:
    """Send the answer frame by frame, as far as the behaviour lets it."""
    response = web.StreamResponse(status=reply.status)
    response.headers["Content-Type"] = reply.content_type
    response.headers.update(reply.headers)
    await asyncio.sleep(behaviour.delay_s)
    if behaviour.die == "before_headers":
        return _drop(request, response)
    if not reply.streamed:
        response.content_length = sum(map(len, reply.frames))
    await response.prepare(request)
    if behaviour.die == "after_headers":
        return _drop(request, response)
    frames = _first_half(reply.frames) if behaviour.die else reply.frames
    for index, frame in enumerate(frames):
        await asyncio.sleep(behaviour.chunk_delay_s if index else 0)
        await response.write(frame)
    return _drop(request, response) if behaviour.die else response


def _first_half(frames: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if len(frames) == 1:
        return (frames[0][: len(frames[0]) // 2],)
    return frames[: len(frames) // 2]


def _drop(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response


@asynccontextmanager
async def listening(address: str) -> AsyncIterator[str]:
    """Serve a new stand-in; give its address, with the real port where that was 0.

    Raises ValueError if it is no address and OSError if it cannot be had.
    """
    runner = web.AppRunner(
        make_app(),
        access_log=None,
        auto_decompress=False,  # Ollama reads the bytes as they are
        handler_cancellation=True,  # it stops when its client leaves
        max_field_size=_MAX_HEADER,
        max_line_size=_MAX_HEADER,
        shutdown_timeout=0.1,  # streams may be open without end
    )
    await runner.setup()
    try:
        bound = await _bind(runner, address)
        try:
            yield bound
        finally:
            _remove_socket(address)
    finally:
        await runner.cleanup()


async def _bind(runner: web.AppRunner, address: str) -> str:
    if address.startswith("unix:"):
        await web.UnixSite(runner, address.removeprefix("unix:")).start()
        return address
    parts = urlsplit(f"//{address}")
    if not parts.hostname or parts.port is None:  # aiohttp would listen everywhere
        message = "an address is unix:/path/to.sock or HOST:PORT"
        raise ValueError(message)
    await web.TCPSite(runner, parts.hostname, parts.port).start()
    return f"{address.rpartition(':')[0]}:{runner.addresses[0][1]}"


def _remove_socket(address: str) -> None:
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)
