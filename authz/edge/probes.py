"""Metrics and health over HTTP, for Prometheus and the kubelet.

It runs in a thread of its own, so that it answers also while the workers do not:
that is what it is asked about.
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
from grpc_health.v1 import health_pb2
from prometheus_client import make_wsgi_app

from authz.edge.server import SERVICE
from authz.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client import CollectorRegistry

_TIMEOUT_S = 1.0


class _QuietHandler(WSGIRequestHandler):
    timeout = 5  # seconds for a client to send its request

    def log_message(self, *_args: object) -> None:
        """Probes come every few seconds; they are not news."""


def is_serving(socket: Path) -> bool:
    """Ask the worker on a socket whether it serves (grpc.health.v1)."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        asked = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            answer = check(asked, timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def probes(
    address: tuple[str, int], registry: CollectorRegistry, sockets: Iterable[Path]
) -> Iterator[None]:
    """Answer ``/metrics``, ``/livez`` and ``/readyz`` until the block ends."""
    server = _listen(address, _Probes(registry, tuple(sockets)))
    thread = threading.Thread(target=server.serve_forever, name="probes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Probes:
    def __init__(self, registry: CollectorRegistry, sockets: tuple[Path, ...]) -> None:
        self._metrics = make_wsgi_app(registry)
        self._sockets = sockets

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                page: Iterable[bytes] = self._metrics(environ, start_response)
                return page
            case "/livez":
                return _answer(start_response, HTTPStatus.OK)
            case "/readyz" if all(map(is_serving, self._sockets)):
                return _answer(start_response, HTTPStatus.OK)
            case "/readyz":
                return _answer(start_response, HTTPStatus.SERVICE_UNAVAILABLE)
            case _:
                return _answer(start_response, HTTPStatus.NOT_FOUND)


def _answer(start_response: StartResponse, status: HTTPStatus) -> Iterable[bytes]:
    start_response(f"{status} {status.phrase}", [("Content-Type", "text/plain")])
    return [f"{status.phrase}\n".encode()]


def _listen(address: tuple[str, int], app: _Probes) -> WSGIServer:
    host, port = address
    kind = _Server6 if ":" in host else _Server
    try:
        return make_server(host, port, app, kind, _QuietHandler)
    except OSError as error:
        msg = f"AUTHZ_METRICS_LISTEN: cannot listen at {host}:{port}: {error}"
        raise ConfigError(msg) from None
