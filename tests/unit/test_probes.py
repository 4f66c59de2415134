"""Ready is what every worker says it is; alive is who answers at all."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from prometheus_client import CollectorRegistry

from authz.edge.probes import probes
from authz.edge.server import SERVICE
from authz.local.process import private_directory
from authz.local.stack import free_port

if TYPE_CHECKING:
    from pathlib import Path

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def start_worker(stack: AsyncExitStack, socket: Path) -> health.HealthServicer:
    """Run a worker that has nothing but its health."""
    server, servicer = grpc.aio.server(), health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    stack.push_async_callback(server.stop, None)
    await servicer.set(SERVICE, SERVING)
    return servicer


async def asked(port: int, path: str) -> int:
    async with httpx.AsyncClient(timeout=5) as client:
        return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code


async def test_ready_is_when_all_workers_serve_and_alive_is_always() -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        run = stack.enter_context(private_directory("authz-probes-"))
        sockets = [run / "authz-0.sock", run / "authz-1.sock"]
        address = ("127.0.0.1", port)
        stack.enter_context(probes(address, CollectorRegistry(), sockets))
        assert [await asked(port, p) for p in ("/livez", "/readyz")] == [200, 503]
        first = await start_worker(stack, sockets[0])
        assert await asked(port, "/readyz") == 503
        await start_worker(stack, sockets[1])
        assert await asked(port, "/readyz") == 200
        await first.set(SERVICE, NOT_SERVING)
        assert [await asked(port, p) for p in ("/livez", "/readyz")] == [200, 503]
