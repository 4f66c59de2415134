"""Takes Envoy's access log over gRPC, in the place of authz."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import yaml
from envoy_data_plane.envoy.data.accesslog.v3 import AccessLogType
from envoy_data_plane.envoy.service.accesslog.v3 import StreamAccessLogsMessage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from envoy_data_plane.envoy.data.accesslog.v3 import HttpAccessLogEntry

END = AccessLogType.DownstreamEnd
PERIODIC = AccessLogType.DownstreamPeriodic
WITHIN_S = 20


@dataclass
class Receiver:
    """What came, as (name of the log, entry), oldest first.

    ``messages`` has the ids of the requests that each message told of.
    """

    entries: list[tuple[str, HttpAccessLogEntry]] = field(default_factory=list)
    messages: list[set[str]] = field(default_factory=list)
    _first: dict[tuple[str, str | None, int], HttpAccessLogEntry] = field(
        default_factory=dict
    )
    _came: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def entry(
        self, request_id: str | None, log: str = "authz.usage", kind: int = END
    ) -> HttpAccessLogEntry:
        """Wait for the first entry of a request in a log."""
        wanted = (log, request_id, kind)
        async with asyncio.timeout(WITHIN_S), self._came:
            await self._came.wait_for(lambda: wanted in self._first)
        return self._first[wanted]

    async def more_than(self, count: int) -> None:
        """Wait for so many entries, and one more."""
        async with asyncio.timeout(WITHIN_S), self._came:
            await self._came.wait_for(lambda: len(self.entries) > count)

    async def take(self, messages: AsyncIterator[bytes], _context: object) -> bytes:
        """Serve StreamAccessLogs."""
        name = ""
        async for raw in messages:
            message = parsed(raw)
            name = message.identifier.log_name if message.identifier else name
            assert message.http_logs
            async with self._came:
                self.messages.append(set())
                for entry in message.http_logs.log_entry:
                    self._add(name, entry)
                self._came.notify_all()
        return b""

    def _add(self, log: str, entry: HttpAccessLogEntry) -> None:
        self.entries.append((log, entry))
        assert entry.common_properties
        assert entry.request
        self.messages[-1].add(entry.request.request_id)
        kind = entry.common_properties.access_log_type
        self._first.setdefault((log, entry.request.request_id, kind), entry)


def parsed(raw: bytes) -> StreamAccessLogsMessage:
    """Read a message; Envoy still fills a field that its API warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return StreamAccessLogsMessage.parse(raw)


def metadata(entry: HttpAccessLogEntry, namespace: str) -> dict[str, Any]:
    """Return what filters have said about a request in one namespace."""
    assert entry.common_properties
    said = entry.common_properties.metadata
    assert said
    struct = said.filter_metadata.get(namespace)
    return dict(struct.to_dict()) if struct else {}


@asynccontextmanager
async def log_receiver(socket: Path) -> AsyncIterator[Receiver]:
    """Listen on a unix socket until the block ends."""
    receiver = Receiver()
    service = "envoy.service.accesslog.v3.AccessLogService"
    methods: dict[str, Any] = {
        "StreamAccessLogs": grpc.stream_unary_rpc_method_handler(receiver.take)
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, methods),)
    )
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield receiver
    finally:
        await server.stop(None)


def send_logs_to(socket: Path, directory: Path) -> None:
    """Change Envoy's files: the entries go to ``socket``, the first after 0.2 s."""
    clusters = directory / "clusters.yaml"
    config = yaml.safe_load(clusters.read_text())
    receiver = deepcopy(config["resources"][0])
    receiver["name"] = receiver["load_assignment"]["cluster_name"] = "receiver"
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    receiver["load_assignment"]["endpoints"] = [{"lb_endpoints": [endpoint]}]
    config["resources"].append(receiver)
    clusters.write_text(yaml.safe_dump(config))

    listener = directory / "listener.yaml"
    config = yaml.safe_load(listener.read_text())
    [chain] = config["resources"][0]["filter_chains"]
    manager = chain["filters"][1]["typed_config"]
    manager["access_log_options"]["access_log_flush_interval"] = "0.2s"
    for log in manager["access_log"]:
        if log["name"] == "envoy.access_loggers.http_grpc":
            service = log["typed_config"]["common_config"]["grpc_service"]
            service["envoy_grpc"]["cluster_name"] = "receiver"
    listener.write_text(yaml.safe_dump(config, sort_keys=False))
