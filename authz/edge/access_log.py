"""The StreamAccessLogs call: how requests went on and ended, as Envoy tells it.

Rule: an entry that cannot be read counts for nothing and ends nothing; what Envoy
says twice is recorded and settled once.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from authz.core.metering import Finished, meter
from authz.edge.translate import INPUT_ESTIMATE, LIMITED
from authz.pb import access_log_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
    from datetime import datetime

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.struct_pb2 import Value

    from authz.limiter import Limiter
    from authz.metrics import Metrics
    from authz.ports import UsageLog

    Fields = Mapping[str, Value]
    Call = Coroutine[None, None, None]

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
# In bytes: all together fit into one entry of an index.
_LONGEST_TEXT = {"owner": 400, "endpoint": 200, "model": 1200}
# What began earlier, or will begin, has no true time.
_OLDEST_S, _NEWEST_S = 7 * 86400, 300


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
                    await self._take(message.http_logs.log_entry, call_for, settling)

    async def _take(
        self,
        entries: Sequence[pb.HTTPAccessLogEntry],
        call_for: Callable[[pb.HTTPAccessLogEntry], Call | None],
        settling: asyncio.TaskGroup,
    ) -> None:
        """Begin what is to be done for entries; the next ones wait for room alone."""
        for number, entry in enumerate(entries, 1):
            await self._room.acquire()
            call = call_for(entry)
            if call is None:
                self._room.release()
            else:
                settling.create_task(call).add_done_callback(self._ended)
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
        return self._limiter.settle(None, request_id, 0)

    def _used(self, entry: pb.HTTPAccessLogEntry) -> Call | None:
        """Record a request if it has ended; return what its key's limits need."""
        common = entry.common_properties
        verdict = common.metadata.filter_metadata[_VERDICT].fields
        key_id, request_id = _text(verdict, "key_id"), entry.request.request_id
        if not (_UUID.fullmatch(key_id) and 0 < len(request_id) <= _LONGEST_ID):
            self._unreadable.inc()
            return None
        is_limited = LIMITED in verdict
        if common.access_log_type == _PERIODIC:
            return self._limiter.renew(key_id, request_id) if is_limited else None
        if common.access_log_type not in _ENDS:
            return None
        finished = self._finished(entry, verdict)
        used = meter(finished)
        self._usage.note(finished, used)
        self._metrics.finished(finished, used)
        if is_limited:
            return self._limiter.settle(key_id, request_id, used.settled)
        return None

    def _finished(self, entry: pb.HTTPAccessLogEntry, verdict: Fields) -> Finished:
        common, flags = entry.common_properties, entry.common_properties.response_flags
        seen = common.metadata.filter_metadata[_SEEN].fields
        return Finished(
            request_id=entry.request.request_id,
            key_id=verdict["key_id"].string_value,
            owner=_text(verdict, "owner"),
            endpoint=_text(verdict, "endpoint"),
            model=_text(verdict, "model"),
            began=self._moment(common.start_time.seconds),
            status=entry.response.response_code.value,
            duration_ms=_milliseconds(common.duration),
            first_byte_ms=_milliseconds(common.time_to_first_downstream_tx_byte),
            request_bytes=entry.request.request_body_bytes,
            response_bytes=entry.response.response_body_bytes,
            input_estimate=_number(verdict, INPUT_ESTIMATE),
            input_tokens=_number(seen, "input_tokens"),
            output_tokens=_number(seen, "output_tokens"),
            chunks=_number(seen, "chunks") or 0,
            ended=seen["ended"].bool_value,
            failed=seen["failed"].bool_value,
            left=flags.downstream_connection_termination
            or flags.downstream_remote_reset,
            # Any flag: those that we do not know are kept, too.
            broken=flags.ByteSize() > 0,
        )

    def _moment(self, seconds: int) -> int:
        now = int(self._now().timestamp())
        return seconds if now - _OLDEST_S < seconds < now + _NEWEST_S else now


def _text(fields: Fields, name: str) -> str:
    """Return a text, empty where there is none that could be kept."""
    text = fields[name].string_value
    is_odd = len(text.encode()) > _LONGEST_TEXT.get(name, _LONGEST_ID) or "\0" in text
    return "" if is_odd else text


def _number(fields: Fields, name: str) -> float | None:
    value = fields[name]
    return value.number_value if value.HasField("number_value") else None


def _milliseconds(duration: Duration) -> int:
    return duration.seconds * 1000 + duration.nanos // 1_000_000
