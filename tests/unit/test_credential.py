"""Keys: their shape, their checksum and the headers that may carry them."""

from __future__ import annotations

import hashlib
import hmac
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.credential import (
    ALPHABET,
    Credential,
    Peppers,
    mint,
    read_credential,
)
from authz.core.model import Deny, Reason

KEY = mint(bytes(range(32)))
OTHER_KEY = mint(bytes(32))
PLAIN = hashlib.sha256(KEY.encode()).digest()
PEPPER, OLDER = b"p" * 32, b"o" * 32


def read(headers: dict[str, str]) -> Credential | Deny:
    return read_credential(headers, Peppers())


@given(st.binary(min_size=32, max_size=32))
def test_a_minted_key_is_the_mark_43_digits_and_a_crc32_in_base_62(
    entropy: bytes,
) -> None:
    key = mint(entropy)
    number = 0
    for digit in key[3:46]:
        number = number * 62 + ALPHABET.index(digit)
    checksum = 0
    for digit in key[46:]:
        checksum = checksum * 62 + ALPHABET.index(digit)
    assert key.startswith("nz_")
    assert len(key) == 52
    assert number.to_bytes(32) == entropy
    assert checksum == zlib.crc32(key[:46].encode())


def test_a_known_key_never_changes() -> None:
    assert KEY == "nz_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf3xlM6q"


def test_a_key_is_stored_as_its_sha256() -> None:
    assert Peppers().digest(KEY) == PLAIN
    assert Peppers().digests(KEY) == (PLAIN,)
    assert Peppers().current_id is None


def test_with_a_pepper_a_key_is_stored_as_its_hmac() -> None:
    peppers = Peppers(PEPPER)
    assert peppers.digest(KEY) == hmac.digest(PEPPER, KEY.encode(), "sha256")
    assert peppers.digests(KEY) == (peppers.digest(KEY), PLAIN)


def test_a_key_is_found_under_every_pepper_that_it_may_be_stored_under() -> None:
    peppers = Peppers(PEPPER, [OLDER, PEPPER])
    olds = (Peppers(OLDER).digest(KEY), PLAIN)
    assert peppers.digests(KEY) == (Peppers(PEPPER).digest(KEY), *olds)
    assert peppers.ids == {peppers.current_id, Peppers(OLDER).current_id}


def test_a_pepper_that_is_taken_out_of_use_still_finds_its_keys() -> None:
    peppers = Peppers(None, [OLDER])
    assert peppers.current_id is None
    assert peppers.digest(KEY) == PLAIN
    assert peppers.digests(KEY) == (PLAIN, Peppers(OLDER).digest(KEY))


def test_the_id_of_a_pepper_tells_it_from_others_and_nothing_more() -> None:
    peppers = Peppers(PEPPER)
    assert peppers.current_id == Peppers(PEPPER).current_id
    assert peppers.current_id != Peppers(OLDER).current_id
    shown = repr(peppers) + str(peppers) + str(peppers.current_id)
    assert PEPPER.decode() not in shown
    assert PEPPER.hex() not in shown


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"authorization": f"BEARER {KEY}"},
        {"x-api-key": KEY},
        {"authorization": f"Bearer {KEY}", "x-api-key": KEY},
        {"authorization": f"Bearer {KEY}", "x-api-key": ""},
    ],
)
def test_a_key_is_found_where_clients_put_it(headers: dict[str, str]) -> None:
    assert read(headers) == Credential((PLAIN,), KEY[:11])


@pytest.mark.parametrize("headers", [{}, {"x-api-key": ""}, {"cookie": KEY}])
def test_no_credential_is_denied_as_missing(headers: dict[str, str]) -> None:
    assert read(headers) == Deny(Reason.CREDENTIAL_MISSING)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": KEY},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer  {KEY}"},
        {"authorization": f"Bearer {KEY} "},
        {"authorization": f"Bearer {KEY},Bearer {KEY}"},
        {"authorization": f"Bearer {KEY}\n"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "NotBearer foo"},
        {"authorization": f"NotBearer {KEY}", "x-api-key": KEY},
        {"authorization": "", "x-api-key": KEY},
        {"authorization": f"Bearer {KEY}", "x-api-key": OTHER_KEY},
        {"x-api-key": f"{KEY},{KEY}"},
        {"x-api-key": f"Bearer {KEY}"},
        {"x-api-key": "nz_doesnotexistxxxxxxxxxxxxxxxxxxxxxxxxxx"},
        {"x-api-key": KEY[:-1] + ("0" if KEY[-1] != "0" else "1")},
        {"x-api-key": KEY.replace("0", "\u0660", 1)},
        {"x-api-key": "!" * 8192},
    ],
)
def test_anything_else_is_malformed(headers: dict[str, str]) -> None:
    assert read(headers) == Deny(Reason.CREDENTIAL_MALFORMED)


@given(st.text(max_size=80))
def test_no_text_makes_the_reader_raise(text: str) -> None:
    headers = {"authorization": text, "x-api-key": text}
    assert isinstance(read(headers), Deny)


def test_nothing_that_is_kept_of_a_key_can_print_it() -> None:
    assert KEY not in repr(read({"x-api-key": KEY}))
