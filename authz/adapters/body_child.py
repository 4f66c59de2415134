"""The process that reads large bodies: frames in at stdin, verdicts out there, too.

It imports the core alone and ends with its worker, whose end closes the socket.
"""

from __future__ import annotations

import gc
import json
import resource
import socket
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from authz.core.decide import read_asked
from authz.core.endpoints import find_endpoint
from authz.core.model import Asked, Deny, Reason, Request

if TYPE_CHECKING:
    from authz.core.endpoints import Endpoint

# A frame: the sizes of its head and of the body, the head as JSON, the body.
_SIZES = struct.Struct("!II")
# Twice what the most costly body of 16 MiB was seen to take: one sign beyond U+FFFF
# makes every sign of a text four bytes.
_MOST_MEMORY_BYTES = 384 * 1024 * 1024


def write_head(request: Request) -> bytes:
    """Return what goes before the body of a request."""
    head = json.dumps([request.method, request.path, dict(request.headers)]).encode()
    return _SIZES.pack(len(head), len(request.body)) + head


def read_answer(line: bytes) -> Asked | Deny:
    """Read a line that the process wrote. Raises ValueError if it is none."""
    answer: dict[str, Any] = json.loads(line)
    for name, value in answer.items():
        # JSON knows no tuples, and the core has no lists in its values.
        answer[name] = tuple(value) if isinstance(value, list) else value
    if "reason" in answer:
        return Deny(**answer | {"reason": Reason(answer["reason"])})
    return Asked(**answer)


def main() -> None:
    """Answer frame after frame until the other end is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    # Nothing here makes cycles, and looking for them among the many parts of a
    # body takes longer than reading it.
    gc.disable()
    with socket.socket(fileno=0) as worker, worker.makefile("rb") as frames:
        while sizes := frames.read(_SIZES.size):
            worker.sendall(_answer(frames, *_SIZES.unpack(sizes)))


def _answer(frames: BinaryIO, head_size: int, body_size: int) -> bytes:
    method, path, headers = json.loads(frames.read(head_size))
    request = Request(method, path, headers, frames.read(body_size))
    asked = _read(find_endpoint(method, path), request)
    answer = asked._asdict()
    if isinstance(asked, Deny):
        answer["reason"] = asked.reason.value
    else:
        answer["amounts"] = dict(asked.amounts)
    return json.dumps(answer).encode() + b"\n"


def _read(endpoint: Endpoint | Deny, request: Request) -> Asked | Deny:
    return endpoint if isinstance(endpoint, Deny) else read_asked(endpoint, request)


if __name__ == "__main__":
    main()
