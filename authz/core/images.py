"""How large a picture is once it is decoded, read from its first bytes.

A few kilobytes can unfold into gigabytes of pixels. What is in none of the formats
that Ollama 0.33 and the libraries under it decode is of unknown size.
"""

from __future__ import annotations

import binascii
import struct
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# For all pictures of a request. Cameras and editors put a dozen small pieces before
# the size; a thousand take 2 ms.
_MOST_PIECES = 1_000
# Thousands of pictures would take seconds; no preset allows so many.
_MOST_PICTURES = 64

_DATA_URI = "data:"
_BASE64 = ";base64,"

_MARK = 0xFF  # what a marker of JPEG begins with
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn
# Markers without a length; any number of 0xFF may stand before a marker.
_JPEG_ALONE = frozenset(range(0xD0, 0xD9))
_FIRST_MARKER = 0xC0
_OLDEST_BMP = 12  # bytes of its header, with two bytes a side
_SIDE = 0x3FFF  # the bits of a side in WebP
# FLAC and Ogg are not among them: silence of days takes no room in these.
_MP3 = (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


class _NotReadError(ValueError):
    """The picture ends too early, or is none."""


def most_pixels(pictures: Sequence[Picture]) -> float:
    """Return the area of the largest; infinity where it is not known."""
    if len(pictures) > _MOST_PICTURES:
        return inf
    pieces = iter(range(_MOST_PIECES))
    return max(picture.pixels(pieces) for picture in pictures)


def count_sounds(pictures: Sequence[Picture]) -> int:
    """Count the sounds, of as many pictures as are looked at."""
    return sum(picture.is_sound for picture in pictures[:_MOST_PICTURES])


class Picture:
    """A picture as clients send it: base64, or a data URI of that."""

    def __init__(self, text: str) -> None:
        if text.startswith(_DATA_URI):
            text = text.partition(_BASE64)[2]
        self._text = text

    @property
    def length(self) -> int:
        """Signs of its base64."""
        return len(self._text)

    @property
    def size(self) -> int:
        """Bytes, padding counted."""
        return len(self._text) * 3 // 4

    @property
    def is_sound(self) -> bool:
        """Whether it is a WAV or MP3 file."""
        try:
            start = self._bytes(0, 12)
        except ValueError:
            return False
        return start.startswith(_MP3) or (start[:4], start[8:]) == (b"RIFF", b"WAVE")

    def pixels(self, pieces: Iterable[int]) -> float:
        """Return width times height; 0 for a sound, infinity where it is not known.

        One of ``pieces`` is taken for each piece of a file that is looked at.
        """
        if self.is_sound:
            return 0
        # Go skips line ends in base64: what we count would not be what it reads.
        if "\n" in self._text or "\r" in self._text:
            return inf
        try:
            return self._pixels(pieces)
        except (ValueError, struct.error):  # binascii.Error is a ValueError
            return inf

    def _pixels(self, pieces: Iterable[int]) -> float:
        start = self._bytes(0, 32)
        if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR":
            return _area(_big(start[16:20]), _big(start[20:24]))
        if start.startswith((b"GIF87a", b"GIF89a")):
            return _area(_little(start[6:8]), _little(start[8:10]))
        if start.startswith(b"BM"):
            return _bmp(start)
        if start.startswith(b"\xff\xd8\xff"):
            return self._jpeg(pieces)
        if start.startswith(b"RIFF"):
            return self._webp(pieces)
        return inf

    def _jpeg(self, pieces: Iterable[int]) -> int:
        at = 2
        for _ in pieces:
            mark, kind = self._bytes(at, 2)
            if mark != _MARK:
                break
            if kind < _FIRST_MARKER:  # read as nothing by some, as a piece by others
                break
            if kind in _JPEG_ALONE:
                at += 2
            elif kind in _JPEG_SIZES:
                size = self._bytes(at + 5, 4)
                return _area(_big(size[2:]), _big(size[:2]))
            elif kind == _MARK:
                at += 1
            else:
                at += 2 + _big(self._bytes(at + 2, 2))
        raise _NotReadError

    def _webp(self, pieces: Iterable[int]) -> int:
        """Return the largest of the sizes that the pieces give."""
        at, areas = 12, [0]
        end = 8 + _little(self._bytes(4, 4))
        for _ in pieces:
            if at >= min(end, self.size):
                return _area(max(areas), 1)
            head = self._bytes(at, 18)
            areas.append(_webp_piece(head[:4], head[8:]))
            length = _little(head[4:8])
            at += 8 + length + length % 2
        raise _NotReadError

    def _bytes(self, start: int, count: int) -> bytes:
        """Decode no more than is asked for. Raises ValueError beyond the end."""
        first, last = start // 3, -(-(start + count) // 3)
        piece = binascii.a2b_base64(self._text[first * 4 : last * 4], strict_mode=True)
        return piece[start - first * 3 :][:count]


def _area(width: int, height: int) -> int:
    if not width or not height:
        raise _NotReadError
    return width * height


def _big(number: bytes) -> int:
    return int.from_bytes(number, "big")


def _little(number: bytes) -> int:
    return int.from_bytes(number, "little")


def _bmp(start: bytes) -> int:
    if _little(start[14:18]) == _OLDEST_BMP:
        return _area(_little(start[18:20]), _little(start[20:22]))
    width, height = struct.unpack_from("<ii", start, 18)
    return _area(abs(width), abs(height))  # negative: from the top down


def _webp_piece(kind: bytes, start: bytes) -> int:
    """Return the area that a piece of a WebP file gives, 0 if it gives none."""
    if kind == b"VP8X":
        return (_little(start[4:7]) + 1) * (_little(start[7:10]) + 1)
    if kind == b"VP8L":
        bits = _little(start[1:5])
        return ((bits & _SIDE) + 1) * ((bits >> 14 & _SIDE) + 1)
    if kind == b"VP8 ":
        return (_little(start[6:8]) & _SIDE) * (_little(start[8:10]) & _SIDE)
    return 0
