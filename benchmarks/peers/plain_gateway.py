"""The gateway that one would write in an afternoon: FastAPI, httpx, the same checks.

Run as ``python -m benchmarks.peers.plain_gateway PORT`` with ``DATABASE_URL`` and
``UPSTREAM`` in the environment. It shows what the checks cost in the usual tools, so it
has what makes these fast (uvloop, httptools, kept connections, keys in memory) and does
nothing that it need not.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from hashlib import sha256
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

SCHEMA = """
CREATE TABLE IF NOT EXISTS plain_keys (
    digest bytea PRIMARY KEY, models text[] NOT NULL, expires_at timestamptz,
    revoked boolean NOT NULL DEFAULT false
)
"""
_FIND = "SELECT models, expires_at, revoked FROM plain_keys WHERE digest = $1"
_REMEMBERED_S = 30.0  # as long as authz does
_MOST_REMEMBERED = 100_000
_MOST_BYTES = 16 * 1024 * 1024
_TIMEOUT = httpx.Timeout(600, connect=5)
_CONNECTIONS = httpx.Limits(max_connections=640, max_keepalive_connections=640)
_TRAVEL_BACK = ("content-type", "content-length")
_WITH_MODEL = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
    *("/api/chat", "/api/generate", "/api/embed"),
)

# What is known of a digest, until when.
_remembered: dict[bytes, tuple[float, asyncpg.Record | None]] = {}


class Refused(Exception):
    """An answer that is not the model server's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@asynccontextmanager
async def _stores(app: FastAPI) -> AsyncIterator[None]:
    async with (
        asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool,
        httpx.AsyncClient(
            base_url=os.environ["UPSTREAM"], timeout=_TIMEOUT, limits=_CONNECTIONS
        ) as client,
    ):
        await pool.execute(SCHEMA)
        app.state.pool, app.state.client = pool, client
        yield


app = FastAPI(lifespan=_stores, openapi_url=None)


@app.exception_handler(Refused)
async def _refuse(_request: Request, refused: Refused) -> Response:
    """Answer with the one body that all errors have."""
    request_id = str(uuid4())
    error = {"code": refused.code, "message": str(refused), "request_id": request_id}
    headers = {"x-request-id": request_id}
    return JSONResponse({"error": error}, refused.status, headers)


@app.exception_handler(404)
async def _nothing_there(request: Request, _error: Exception) -> Response:
    return await _refuse(request, Refused(404, "not_found", "No such endpoint."))


async def _pass_on(request: Request) -> Response:
    key = await _key_of(request)
    body = await _body_of(request)
    _check_model(key, body)
    return await _answer_of_upstream(request, body)


for _path in _WITH_MODEL:
    app.add_api_route(_path, _pass_on, methods=["POST"], response_model=None)


async def _key_of(request: Request) -> Any:  # noqa: ANN401 - asyncpg's row
    given = request.headers.getlist("authorization")
    if len(given) == 1 and given[0].startswith("Bearer "):
        digest = sha256(given[0].removeprefix("Bearer ").encode()).digest()
        key = await _find(request.app.state.pool, digest)
        if key is not None and not key["revoked"] and not _expired(key):
            return key
    raise Refused(401, "unauthorized", "A valid API key is required.")


async def _find(pool: asyncpg.Pool[asyncpg.Record], digest: bytes) -> Any:  # noqa: ANN401 - asyncpg's row
    until, key = _remembered.get(digest, (0.0, None))
    if until < monotonic():
        key = await pool.fetchrow(_FIND, digest)
        if len(_remembered) >= _MOST_REMEMBERED:
            _remembered.clear()
        _remembered[digest] = monotonic() + _REMEMBERED_S, key
    return key


def _expired(key: asyncpg.Record) -> bool:
    return key["expires_at"] is not None and key["expires_at"] <= datetime.now(UTC)


async def _body_of(request: Request) -> bytes:
    size, chunks = 0, []
    async for chunk in request.stream():
        size += len(chunk)
        if size > _MOST_BYTES:
            raise Refused(413, "payload_too_large", "The request is too large.")
        chunks.append(chunk)
    return b"".join(chunks)


def _check_model(key: asyncpg.Record, body: bytes) -> None:
    try:
        asked: Mapping[str, object] = json.loads(body)
        model = asked["model"]
    except (ValueError, LookupError, TypeError, RecursionError):
        model = None
    if not isinstance(model, str):
        raise Refused(400, "invalid_request", "The request is not valid.")
    if not any(fnmatchcase(model, pattern) for pattern in key["models"]):
        raise Refused(403, "model_not_allowed", "The model is not allowed.")


async def _answer_of_upstream(request: Request, body: bytes) -> Response:
    client: httpx.AsyncClient = request.app.state.client
    sent = client.build_request(
        "POST",
        request.url.path,
        content=body,
        headers={"content-type": "application/json"},
    )
    try:
        answer = await client.send(sent, stream=True)
    except httpx.HTTPError:
        message = "The model server failed."
        raise Refused(502, "upstream_error", message) from None
    travels = {name: answer.headers.get(name) for name in _TRAVEL_BACK}
    headers = {name: value for name, value in travels.items() if value is not None}
    headers["x-request-id"] = str(uuid4())
    return StreamingResponse(
        answer.aiter_raw(),
        answer.status_code,
        headers,
        background=BackgroundTask(answer.aclose),
    )


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
