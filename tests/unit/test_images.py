"""The size of a picture is known before anybody decodes it."""

from __future__ import annotations

import base64
from math import inf
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.images import Picture, most_pixels
from tests import images

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = [
    images.png,
    images.gif,
    images.bmp,
    images.old_bmp,
    images.jpeg,
    images.webp,
    images.lossless_webp,
    images.extended_webp,
]


def pixels(data: bytes) -> float:
    return most_pixels([Picture(base64.b64encode(data).decode())])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (640, 480), (16_383, 16_000)])
def test_the_area_is_read(
    kind: Callable[[int, int], bytes], width: int, height: int
) -> None:
    assert pixels(kind(width, height)) == width * height


def test_a_png_of_a_few_bytes_that_unfolds_into_gigabytes_is_seen() -> None:
    assert pixels(images.png(60_000, 60_000)) == 3_600_000_000


def test_a_jpeg_may_have_many_pieces_before_its_size() -> None:
    assert pixels(images.jpeg(7, 9, before=40)) == 63


def test_of_many_pieces_in_all_the_size_is_not_known() -> None:
    one = base64.b64encode(images.jpeg(7, 9, before=40)).decode()
    assert most_pixels([Picture(one)] * 5) == 63
    assert most_pixels([Picture(one)] * 60) == inf


def test_the_larger_of_two_sizes_in_a_webp_counts() -> None:
    inner = images.vp8(9_000, 9_000)
    assert pixels(images.extended_webp(10, 10, inner=inner)) == 81_000_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture at all, whatever its name",
        b"\x89PNG\r\n\x1a\n",
        images.png(0, 9),
        images.png(9, 9)[:20],
        b"\x89PNG\r\n\x1a\n" + b"\0\0\0\4CgBI" + bytes(40),
        images.jpeg(9, 9)[:100],
        b"\xff\xd8\xff\xda" + bytes(50),
        b"\xff\xd8" + b"\xff" * 5000,
        b"\xff\xd8" + b"\xff\xe1\x00\x00" * 2000,
        b"RIFF\xff\xff\xff\xffWEBP" + b"JUNK\0\0\0\0" * 2000,
        b"RIFF\x04\0\0\0WEBP",
        b"8BPS" + bytes(40),
        b"fLaC" + bytes(40),
        b"OggS" + bytes(40),
        b"\xff\xd8\xff\0" + images.jpeg(1, 1)[2:],
        b"\xff\xd8\xff\1" + images.jpeg(1, 1)[2:],
        b"\0\0\2" + bytes(40),
    ],
)
def test_what_cannot_be_read_is_of_unknown_size(data: bytes) -> None:
    assert pixels(data) == inf


@pytest.mark.parametrize("change", ["\n", "\r", " ", "*", "=", "-"])
def test_base64_with_more_in_it_is_of_unknown_size(change: str) -> None:
    text = base64.b64encode(images.png(3, 2)).decode()
    assert most_pixels([Picture(text[:8] + change + text[8:])]) == inf


@pytest.mark.parametrize("start", [b"RIFF\0\0\0\0WAVEfmt ", b"ID3"])
def test_a_sound_has_no_pixels(start: bytes) -> None:
    assert pixels(start + bytes(60)) == 0


def test_a_data_uri_is_what_follows_its_head() -> None:
    text = base64.b64encode(images.png(3, 2)).decode()
    for head in ("data:image/png;base64,", "data:;base64,"):
        assert most_pixels([Picture(head + text)]) == 6
        assert Picture(head + text).size == Picture(text).size
    assert most_pixels([Picture("https://example.com/cat.png")]) == inf


@given(st.sampled_from([kind(3, 2) for kind in KINDS]), st.data())
def test_any_damage_is_read_or_unknown(whole: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(whole)))
    odd = data.draw(st.binary(max_size=8))
    assert pixels(whole[:at] + odd + whole[at + len(odd) :]) >= 0
