"""Settings: what is wrong is named in one line, and no secret with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from authz.config import load_peppers, load_settings
from authz.core.credential import Peppers, mint
from authz.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

KEY = mint(bytes(32))
PEPPER, OLDER = b"p" * 32, b"\x00\xff \n" * 8 + b"o"


def peppers_of(monkeypatch: pytest.MonkeyPatch, current: object, old: str) -> Peppers:
    monkeypatch.setenv("AUTHZ_KEY_PEPPER_FILE", str(current))
    monkeypatch.setenv("AUTHZ_KEY_OLD_PEPPER_FILES", old)
    return load_peppers(load_settings())


def test_without_files_there_is_no_pepper() -> None:
    assert load_peppers(load_settings()).current_id is None


def test_peppers_are_the_bytes_of_their_files_without_outer_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_bytes(PEPPER + b"\r\n")
    (tmp_path / "old").write_bytes(OLDER)
    old = f"{tmp_path}/old,{tmp_path}/new"
    read = peppers_of(monkeypatch, tmp_path / "new", old)
    assert read.digests(KEY) == Peppers(PEPPER, [OLDER]).digests(KEY)


@pytest.mark.parametrize("content", [b"", b"p" * 31 + b"\n", b"p" * 4097])
@pytest.mark.parametrize("variable", ["KEY_PEPPER_FILE", "KEY_OLD_PEPPER_FILES"])
def test_a_pepper_of_a_wrong_size_is_refused_by_the_name_of_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, content: bytes
) -> None:
    file = tmp_path / "pepper"
    file.write_bytes(content)
    monkeypatch.setenv(f"AUTHZ_{variable}", str(file))
    with pytest.raises(ConfigError, match=f"^AUTHZ_{variable}: .*bytes: {file}$"):
        load_peppers(load_settings())


def test_a_cache_secret_that_could_be_guessed_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().cache_secret.get_secret_value() == ""
    for good in ("", "s" * 32):
        monkeypatch.setenv("AUTHZ_CACHE_SECRET", good)
        assert load_settings().cache_secret.get_secret_value() == good
    for short in ("hunter2", "hunter2".ljust(31, "!")):
        monkeypatch.setenv("AUTHZ_CACHE_SECRET", short)
        with pytest.raises(ConfigError, match=r"^AUTHZ_CACHE_SECRET: .* 32 ") as raised:
            load_settings()
        assert "hunter2" not in str(raised.value)


def test_a_pepper_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"^AUTHZ_KEY_PEPPER_FILE: cannot"):
            peppers_of(monkeypatch, wrong, "")
