"""The StreamAccessLogs call: how requests went on and ended, as Envoy tells it.

Rule: an entry that cannot be read counts for nothing and ends nothing; what Envoy
says twice is recorded and settled once.
"""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache, partial
from struct import Struct
from typing import TYPE_CHECKING

import structlog
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value

from authz.core.metering import Finished, meter
from authz.edge.translate import INPUT_ESTIMATE, LIMITED
from authz.pb import access_log_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
    from datetime import datetime

    from google.protobuf.duration_pb2 import Duration

    from authz.limiter import Limiter
    from authz.metrics import Metrics
    from authz.ports import UsageLog

    Fields = Mapping[str, bytes]
    Texts = tuple[str, str, str, str]
    Call = Callable[[], Coroutine[None, None, None]]

# The logs, as listener.yaml names them.
_USAGE = "authz.usage"
_GONE = "authz.gone"

# Where Envoy keeps what Check said, and what gateway.lua saw of the answer.
_VERDICT = "envoy.filters.http.ext_authz"
_SEEN = "authz.usage"

# AccessLogType; Envoy before 1.26 knew only of ends, and said nothing.
_PERIODIC = 5
_ENDS = frozenset({0, 6})

# As many are settled at once, and of as many other work waits.
_AT_ONCE = 32
_GROUP = 32
# For what has been sent when the service is told to stop.
_LAST_S = 0.2

_LONGEST_ID = 128  # of a request, in gateway.lua
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# In bytes, of the key's id, owner, endpoint and model: the last three fit into one
# entry of an index.
_LONGEST_TEXTS = (_LONGEST_ID, 400, 200, 1200)
# The texts of so many verdicts, each of so many bytes: 6 MiB at the most.
_VERDICTS_KEPT, _LONGEST_KEPT = 2048, 500
# How a google.protobuf.Value is serialised: a number, behind its tag; and true.
_NUMBER, _NUMBER_TAG = Struct("<Bd"), 0x11
_TRUE = b"\x20\x01"
# What began earlier, or will begin, has no true time.
_OLDEST_S, _NEWEST_S = 7 * 86400, 300


log = structlog.get_logger()


class AccessLog:
    """envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs."""

    def __init__(
        self,
        limiter: Limiter,
        usage: UsageLog,
        now: Callable[[], datetime],
        metrics: Metrics,
    ) -> None:
        self._limiter = limiter
        self._usage = usage
        self._now = now
        self._metrics = metrics
        self._unreadable = metrics.usage_dropped.labels("unreadable")
        # When the last message came; to ask for each entry takes too long.
        self._came_at = 0
        self._stopping = asyncio.Event()
        self._room = asyncio.Semaphore(_AT_ONCE)
        # What is to be done for an entry, by the name of its log.
        self._calls = {_USAGE: self._used, _GONE: self._gone}

    def stop(self) -> None:
        """Let the streams end, which else go on for as long as Envoy runs."""
        self._stopping.set()

    async def stream(
        self, messages: AsyncIterator[bytes], _context: object
    ) -> pb.StreamAccessLogsResponse:
        """Take in what Envoy sends, until it or the service ends."""
        taking = asyncio.create_task(self._take_all(messages))
        stopping = asyncio.create_task(self._stopping.wait())
        both = {taking, stopping}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({taking}, timeout=_LAST_S)
            if taking.done():
                taking.result()
        finally:
            taking.cancel()
            stopping.cancel()
            await asyncio.wait(both)
        return pb.StreamAccessLogsResponse()

    async def _take_all(self, messages: AsyncIterator[bytes]) -> None:
        name = ""
        async with asyncio.TaskGroup() as settling:
            async for serialised in messages:
                try:
                    message = pb.StreamAccessLogsMessage.FromString(serialised)
                except DecodeError:
                    self._unreadable.inc()
                    continue
                name = message.identifier.log_name or name
                call_for = self._calls.get(name)
                if call_for is not None:
                    self._came_at = int(self._now().timestamp())
                    await self._take(message.http_logs.log_entry, call_for, settling)

    async def _take(
        self,
        entries: Sequence[pb.HTTPAccessLogEntry],
        call_for: Callable[[pb.HTTPAccessLogEntry], Call | None],
        settling: asyncio.TaskGroup,
    ) -> None:
        """Begin what is to be done for entries; the next ones wait for room alone."""
        for number, entry in enumerate(entries, 1):
            call = call_for(entry)
            if call is not None:
                await self._room.acquire()
                settling.create_task(_do(call)).add_done_callback(self._ended)
            if number % _GROUP == 0:
                await asyncio.sleep(0)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._room.release()

    def _gone(self, entry: pb.HTTPAccessLogEntry) -> Call | None:
        """Return what gives back what a request holds whose client did not wait."""
        request_id = entry.request.request_id
        has_ended = entry.common_properties.access_log_type in _ENDS
        if not has_ended or len(request_id) > _LONGEST_ID:
            return None
        return partial(self._limiter.settle, None, request_id, 0)

    def _used(self, entry: pb.HTTPAccessLogEntry) -> Call | None:
        """Record a request if it has ended; return what its key's limits need."""
        common, request_id = entry.common_properties, entry.request.request_id
        metadata = common.metadata.filter_metadata
        verdict, kind = metadata[_VERDICT].fields, common.access_log_type
        texts = _texts(verdict)
        key_id = texts[0]
        if not (key_id and 0 < len(request_id) <= _LONGEST_ID):
            self._unreadable.inc()
            return None
        is_limited = LIMITED in verdict
        if kind == _PERIODIC and is_limited:
            return partial(self._limiter.renew, key_id, request_id)
        if kind not in _ENDS:
            return None
        finished = self._finished(entry, texts, verdict, metadata[_SEEN].fields)
        used = meter(finished)
        self._usage.note(finished, used)
        self._metrics.finished(finished, used)
        if is_limited:
            return partial(self._limiter.settle, key_id, request_id, used.settled)
        return None

    def _finished(
        self,
        entry: pb.HTTPAccessLogEntry,
        texts: Texts,
        verdict: Fields,
        seen: Fields,
    ) -> Finished:
        # In the order of the fields: to pass their names would take most of the time.
        common, request = entry.common_properties, entry.request
        response, flags = entry.response, common.response_flags
        return Finished(
            request.request_id,
            *texts,
            self._began(common.start_time.seconds),
            response.response_code.value,  # status
            _milliseconds(common.duration),
            _milliseconds(common.time_to_first_downstream_tx_byte),
            request.request_body_bytes,
            response.response_body_bytes,
            _number(verdict, INPUT_ESTIMATE),
            _number(seen, "input_tokens"),
            _number(seen, "output_tokens"),
            _number(seen, "chunks") or 0,
            seen["ended"] == _TRUE,
            seen["failed"] == _TRUE,
            bool(flags) and _left(flags),
            bool(flags),  # broken, by any flag: also by those that we do not know
        )

    def _began(self, seconds: int) -> int:
        now = self._came_at
        return seconds if now - _OLDEST_S < seconds < now + _NEWEST_S else now


async def _do(call: Call) -> None:
    """Settle one request; where that fails, the others go on."""
    try:
        await call()
    except Exception:
        log.exception("not_settled")


def _texts(verdict: Fields) -> Texts:
    """Return the key's id, owner, endpoint and model, empty where there is none."""
    key_id, owner = verdict["key_id"], verdict["owner"]
    endpoint, model = verdict["endpoint"], verdict["model"]
    if len(key_id) + len(owner) + len(endpoint) + len(model) > _LONGEST_KEPT:
        return _read(key_id, owner, endpoint, model)
    return _known(key_id, owner, endpoint, model)


def _read(*values: bytes) -> Texts:
    key_id, owner, endpoint, model = map(_text, values, _LONGEST_TEXTS)
    return key_id if _UUID.fullmatch(key_id) else "", owner, endpoint, model


_known = lru_cache(_VERDICTS_KEPT)(_read)


def _text(value: bytes, longest: int) -> str:
    """Return a text, empty where there is none that could be kept."""
    try:
        text = Value.FromString(value).string_value
    except DecodeError:
        return ""
    return "" if len(text.encode()) > longest or "\0" in text else text


def _left(flags: bytes) -> bool:
    try:
        told = pb.ResponseFlags.FromString(flags)
    except DecodeError:
        return False
    return told.downstream_connection_termination or told.downstream_remote_reset


def _number(fields: Fields, name: str) -> float | None:
    value = fields[name]
    if len(value) != _NUMBER.size:
        return None
    tag, number = _NUMBER.unpack(value)
    return number if tag == _NUMBER_TAG else None


def _milliseconds(duration: Duration) -> int:
    return duration.seconds * 1000 + duration.nanos // 1_000_000
