"""A client that asks evenly in time, whether it has been answered or not.

Run as ``python -m benchmarks.steady PATH PORT KEY CONNECTIONS PER_S SECONDS`` in a
folder with the files ``keys`` and ``body``; KEY is the line of the first key. A time
begins when its request was due, not when it was sent: what waits for a slow answer
before it, or for this client itself, is late by that too, so that no slowness hides
(wrk asks less often where answers are slow). What has not been sent when the time is
over counts as if it were answered then: a subject that cannot keep up looks better
than it is.
"""

from __future__ import annotations

import gc
import json
import re
import socket
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import quantiles
from threading import Thread
from typing import TYPE_CHECKING

from benchmarks.wrk import LoadFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_OK = b"HTTP/1.1 200 "
_LEAD_S = 0.1  # all connections are open before the first request is due
_TIMEOUT_S = 10.0


class _Run:
    """Requests that are due one after the other, and what became of them."""

    def __init__(self, requests: Sequence[bytes], per_s: float) -> None:
        self.start = time.perf_counter() + _LEAD_S
        self.end = self.start + len(requests) / per_s
        self.seconds: list[float] = []
        self.unsent: list[float] = []
        self.failed = 0
        # One iterator for all threads: who is free takes the next.
        due = (self.start + number / per_s for number in range(len(requests)))
        self._rest: Iterator[tuple[float, bytes]] = iter(
            list(zip(due, requests, strict=True))
        )

    def serve(self, connection: socket.socket) -> None:
        """Send what is due, as long as there is anything."""
        for due, request in self._rest:
            time.sleep(max(0.0, due - time.perf_counter()))
            if time.perf_counter() > self.end:
                self.unsent.append(self.end - due)
                continue
            connection.sendall(request)
            status_is_ok = _answered(connection)
            self.seconds.append(time.perf_counter() - due)
            self.failed += not status_is_ok


def _answered(connection: socket.socket) -> bool:
    """Take in an answer; tell whether it is a 200."""
    answer = connection.recv(65536)
    while b"\r\n\r\n" not in answer:
        answer += _more(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n")
    if length is None:
        msg = "an answer without content-length"
        raise ConnectionError(msg)
    missing = int(length[1]) - len(body)
    while missing > 0:
        missing -= len(_more(connection))
    return head.startswith(_OK)


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        msg = "closed in the middle of an answer"
        raise ConnectionError(msg)
    return data


def _keys(first: int, count: int) -> Sequence[str]:
    """Return so many keys: one again and again, or the next of more."""
    with Path("keys").open() as file:
        keys = [line.strip() for line in islice(file, 2)]
        if len(keys) == 1:
            return keys * count
        file.seek(0)
        keys = [line.strip() for line in islice(file, first, first + count)]
    if len(keys) < count:
        msg = "no more keys"
        raise LoadFailed(msg)
    return keys


def _requests(path: str, first_key: int, count: int) -> Iterable[bytes]:
    body = Path("body").read_bytes()
    for key in _keys(first_key, count):
        yield (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\n"
            "content-type: application/json\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body


def _connection(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main(path: str, *numbers: str) -> None:
    """Ask, and print the results in one line, as wrk.lua does."""
    port, first_key, connections, per_s = map(int, numbers[:4])
    count = round(per_s * float(numbers[4]))
    requests = list(_requests(path, first_key, count))
    sockets = [_connection(port) for _ in range(connections)]
    gc.disable()
    run = _Run(requests, per_s)
    threads = [Thread(target=run.serve, args=(opened,)) for opened in sockets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    duration = time.perf_counter() - run.start
    times = run.seconds + run.unsent
    found = quantiles(times, n=100, method="inclusive")
    result = {
        "requests": len(run.seconds),
        "failed": run.failed + count - len(times),
        "duration_us": duration * 1e6,
        "p50_us": found[49] * 1e6,
        "p99_us": found[98] * 1e6,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
