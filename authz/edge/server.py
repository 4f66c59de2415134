"""The gRPC server of one worker, on one unix socket."""

from __future__ import annotations

import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from authz.edge.translate import request_of
from authz.errors import ConfigError
from authz.pb.access_log_pb2 import StreamAccessLogsResponse
from authz.pb.external_processor_pb2 import ProcessingRequest, ProcessingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from authz.edge.access_log import AccessLog
    from authz.edge.check import Check
    from authz.edge.model_list import ModelLists

SERVICE = "envoy.service.auth.v3.Authorization"
_LISTS = "envoy.service.ext_proc.v3.ExternalProcessor"
_LOGS = "envoy.service.accesslog.v3.AccessLogService"

# A body of 16 MiB and the headers beside it.
_MAX_MESSAGE_BYTES = 17 * 1024 * 1024
_GRACE_S = 2.0
# A path of a unix socket has 108 bytes, its end included (sys/un.h).
_MAX_SOCKET_PATH = 107


@asynccontextmanager
async def serving(
    check: Check, lists: ModelLists, logs: AccessLog, socket: Path
) -> AsyncIterator[None]:
    """Serve our calls and grpc.health.v1 until the block ends; finish what runs."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ]
    )
    server.add_generic_rpc_handlers((_checks(check), _processes(lists), _streams(logs)))
    healthy = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    _bind(server, socket)
    _set_aside_what_stays()
    await server.start()
    await healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        await healthy.enter_graceful_shutdown()
        logs.stop()
        await server.stop(_GRACE_S)


def _checks(check: Check) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(
                check.answer,
                request_deserializer=request_of,
                # Check answers in bytes: verdicts are serialised once and kept.
                response_serializer=None,
            )
        },
    )


def _processes(lists: ModelLists) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        _LISTS,
        {
            "Process": grpc.stream_stream_rpc_method_handler(
                lists.process,
                request_deserializer=ProcessingRequest.FromString,
                response_serializer=ProcessingResponse.SerializeToString,
            )
        },
    )


def _streams(logs: AccessLog) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        _LOGS,
        {
            "StreamAccessLogs": grpc.stream_unary_rpc_method_handler(
                logs.stream,
                # A message that cannot be read must not end the stream.
                request_deserializer=None,
                response_serializer=StreamAccessLogsResponse.SerializeToString,
            )
        },
    )


def _set_aside_what_stays() -> None:
    """Spare requests the wait while the collector looks at all that was imported."""
    gc.collect()
    gc.freeze()


def _bind(server: grpc.aio.Server, socket: Path) -> None:
    if len(str(socket)) > _MAX_SOCKET_PATH:
        msg = f"AUTHZ_LISTEN: the path of a socket there is too long: {socket}"
        raise ConfigError(msg)
    # A socket that a killed process left behind would keep the address taken.
    socket.unlink(missing_ok=True)
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError:
        msg = f"AUTHZ_LISTEN: cannot listen at {socket}"
        raise ConfigError(msg) from None
