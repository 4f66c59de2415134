"""The least that a Python authorization service can cost: it allows all, unread.

Run as ``python -m benchmarks.floor SOCKET``. Whatever work is added here lowers
the bar for the gateway, so nothing is; its event loop and gRPC run as the gateway's do.
"""

from __future__ import annotations

import sys

import grpc
import uvloop

from authz.pb import external_auth_pb2 as pb

_SERVICE = "envoy.service.auth.v3.Authorization"
_OK = pb.CheckResponse(
    status=pb.RpcStatus(code=0), ok_response=pb.OkHttpResponse()
).SerializeToString()


async def _allow(_message: bytes, _context: object) -> bytes:
    return _OK


async def _serve(socket: str) -> None:
    # A body of 10 MiB stands in the message.
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    check: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        _allow
    )
    server.add_registered_method_handlers(_SERVICE, {"Check": check})
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
