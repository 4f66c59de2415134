"""The first bytes of pictures of a given size, as encoders write them."""

from __future__ import annotations

import struct


def png(width: int, height: int) -> bytes:
    header = struct.pack(">4sII5B", b"IHDR", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + bytes(40)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(40)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + bytes(12) + struct.pack("<Iii", 40, width, -height) + bytes(40)


def old_bmp(width: int, height: int) -> bytes:
    return b"BM" + bytes(12) + struct.pack("<IHH", 12, width, height) + bytes(40)


def jpeg(width: int, height: int, before: int = 1) -> bytes:
    pieces = b"".join(
        b"\xff" * (number % 3 + 1)
        + b"\xe1"
        + struct.pack(">H", 702)
        + b"\xff\xc0" * 350
        for number in range(before)
    )
    size = b"\xff\xc2" + struct.pack(">HBHH", 17, 8, height, width)
    return b"\xff\xd8" + pieces + size + bytes(40)


def webp(width: int, height: int) -> bytes:
    sides = struct.pack("<HH", width, height)
    return _riff(_piece(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + sides + bytes(31)))


def lossless_webp(width: int, height: int) -> bytes:
    bits = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return _riff(_piece(b"VP8L", b"\x2f" + bits + bytes(20)))


def extended_webp(width: int, height: int, *, inner: bytes = b"") -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return _riff(_piece(b"ICCP", bytes(9)) + _piece(b"VP8X", bytes(4) + sides) + inner)


def vp8(width: int, height: int) -> bytes:
    return webp(width, height)[12:]


def _piece(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _riff(pieces: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(pieces)) + b"WEBP" + pieces
