"""A CheckRequest as it comes, without copies of a large body.

The protobuf library copies a field when it parses a message, and again when the
field is read: of a large body that would be twice the body for as long as it is
looked at. So the body is cut out first and stays where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from authz.pb.external_auth_pb2 import AttributeContext, CheckRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

# Below this, two copies take less time than to look for the field.
_SMALL_BYTES = 64 * 1024

_PATH = (
    CheckRequest.ATTRIBUTES_FIELD_NUMBER,
    AttributeContext.REQUEST_FIELD_NUMBER,
    AttributeContext.Request.HTTP_FIELD_NUMBER,
    AttributeContext.HttpRequest.RAW_BODY_FIELD_NUMBER,
)

# How protobuf encodes what stands on the way: numbers; messages, texts and bytes.
_VARINT, _LENGTH_DELIMITED = 0, 2
_MORE = 0x80  # the bit of a byte that another one follows


def parse(message: bytes) -> tuple[AttributeContext, memoryview | None]:
    """Return what a CheckRequest says, and its body if that was cut out of it.

    A body that was is a part of ``message``. Raises ValueError for what is no such
    message.
    """
    if len(message) <= _SMALL_BYTES:
        return CheckRequest.FromString(message).attributes, None
    rest, body = _cut(memoryview(message), _PATH)
    return CheckRequest.FromString(rest).attributes, body


def _cut(message: memoryview, path: tuple[int, ...]) -> tuple[bytes, memoryview]:
    """Return a message without the field at the end of the path, and that field."""
    rest, found = bytearray(), message[:0]
    for number, start, value, end in _fields(message):
        if number != path[0]:
            rest += message[start:end]
        elif len(path) == 1:
            found = message[value:end]
        else:
            inner, found = _cut(message[value:end], path[1:])
            rest += _write_varint(number << 3 | _LENGTH_DELIMITED)
            rest += _write_varint(len(inner)) + inner
    return bytes(rest), found


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield of each field its number, and where it, its value and its end are."""
    end = 0
    while end < len(message):
        start = end
        tag, value = _read_varint(message, start)
        number, kind = tag >> 3, tag & 7
        size, end = _read_varint(message, value)
        if kind == _LENGTH_DELIMITED:
            value, end = end, end + size
        if kind not in {_VARINT, _LENGTH_DELIMITED} or end > len(message):
            msg = "not a CheckRequest"
            raise ValueError(msg)
        yield number, start, value, end


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    for byte in message[at : at + 10]:
        number |= (byte & ~_MORE) << shift
        shift, at = shift + 7, at + 1
        if byte < _MORE:
            return number, at
    msg = "an integer without an end"
    raise ValueError(msg)


def _write_varint(number: int) -> bytes:
    written = bytearray()
    while number >= _MORE:
        written.append(number & 0x7F | _MORE)
        number >>= 7
    return bytes([*written, number])
