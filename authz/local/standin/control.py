"""What a stand-in is told and what it remembers: its behaviour and its requests.

The memory is bounded, and a behaviour with a field that is not known is refused.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from aiohttp import web
from pydantic import Base64Bytes, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from authz.local.standin.reply import WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_RECORDS = 1000
_MAX_RECORDED_BODY = 1024 * 1024

_Seconds = Annotated[float, Field(ge=0, le=600)]
_Count = Annotated[int, Field(ge=1, le=100_000)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Behaviour:
    """How requests are answered, for the next ``times`` of them or until changed.

    ``hold`` answers none until the behaviour changes, ``delay_s`` waits before an
    answer and ``chunk_delay_s`` between the frames of one. ``status`` (with ``body``
    and ``headers``) or ``raw_stream`` (frames in base64, with ``content_type``)
    replace the answer. ``chunks`` is the number of pieces of a generated answer, and
    ``tool_call`` makes it a call of the first tool that the request declares.
    ``error_after_chunks`` ends a stream with ``error_line`` after as many frames;
    ``die`` drops the connection.
    """

    hold: bool = False
    delay_s: _Seconds = 0
    chunk_delay_s: _Seconds = 0
    chunks: _Count = len(WORDS)
    tool_call: bool = False
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    body: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    raw_stream: tuple[Base64Bytes, ...] | None = None
    content_type: str = "application/x-ndjson"
    error_after_chunks: Annotated[int, Field(ge=0)] | None = None
    error_line: str = '{"error":"an error was encountered while running the model"}'
    die: Literal["before_headers", "after_headers", "mid_stream"] | None = None
    times: _Count | None = None


class Control:
    """The state of one stand-in, and the handlers that read and change it."""

    def __init__(self) -> None:
        self._records: deque[dict[str, Any]] = deque(maxlen=_MAX_RECORDS)
        self._behaviour = Behaviour()
        self._left = self._behaviour.times
        self._changed = asyncio.Event()

    @contextmanager
    def recorded(self, request: web.Request, body: bytes) -> Iterator[None]:
        """Remember a request, and whether its client left before the answer ended.

        Of a large body only its size and SHA-256 are kept.
        """
        record = _record(request, body)
        self._records.append(record)
        try:
            yield
        except (asyncio.CancelledError, ConnectionError):
            record["left"] = True
            raise

    async def next_behaviour(self) -> Behaviour:
        """Return how the next request is to be answered, waiting while it is held."""
        changed, behaviour = self._changed, self._take_behaviour()
        while behaviour.hold:
            await changed.wait()
            changed, behaviour = self._changed, self._take_behaviour()
        return behaviour

    async def list_requests(self, _request: web.Request) -> web.Response:
        """Answer with what was received, oldest first."""
        return web.json_response(list(self._records))

    async def forget_requests(self, _request: web.Request) -> web.Response:
        """Forget what was received."""
        self._records.clear()
        return web.Response(status=204)

    async def set_behaviour(self, request: web.Request) -> web.Response:
        """Replace the behaviour, or answer 400 with what is wrong with it."""
        try:
            behaviour = TypeAdapter(Behaviour).validate_json(await request.read())
        except ValidationError as error:
            text = error.json(include_url=False, include_context=False)
            return web.Response(status=400, text=text, content_type="application/json")
        self._change(behaviour)
        return web.Response(status=204)

    async def reset_behaviour(self, _request: web.Request) -> web.Response:
        """Behave again."""
        self._change(Behaviour())
        return web.Response(status=204)

    def _change(self, behaviour: Behaviour) -> None:
        self._behaviour, self._left = behaviour, behaviour.times
        self._changed.set()
        self._changed = asyncio.Event()

    def _take_behaviour(self) -> Behaviour:
        taken = self._behaviour
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._behaviour, self._left = Behaviour(), None
        return taken


def _record(request: web.Request, body: bytes) -> dict[str, Any]:
    content = (
        {"body": base64.b64encode(body).decode()}
        if len(body) <= _MAX_RECORDED_BODY
        else {"sha256": hashlib.sha256(body).hexdigest()}
    )
    return {
        "method": request.method,
        "path": request.raw_path,
        "headers": [
            [name.decode("latin-1"), value.decode("latin-1")]
            for name, value in request.raw_headers
        ],
        "size": len(body),
        "left": False,
    } | content
