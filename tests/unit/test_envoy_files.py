"""Whether Envoy serves its files, from times and counts as it tells them."""

from __future__ import annotations

import ssl
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from authz.cli.envoy_certificates import certificates_in_use
from authz.cli.envoy_files import Seen, Watched, judged, observations
from authz.cli.observation import State
from tests.certificates import new_authority

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FOLDER = Path("/etc/envoy")
OK: list[State] = []
HOUR_MS = 3_600_000


def file(
    name: str, placed_ms: int, taken_ms: int, refusals: int = 0, *, seen: Seen
) -> Watched:
    return Watched(FOLDER / f"{name}.yaml", taken_ms, refusals, seen, placed_ms)


def routes(
    placed_ms: int, taken_ms: int, refusals: int = 0, seen: Seen = Seen.RESOURCES
) -> Watched:
    return file("routes", placed_ms, taken_ms, refusals, seen=seen)


def clusters(
    placed_ms: int, taken_ms: int, refusals: int = 0, seen: Seen = Seen.RESOURCES
) -> Watched:
    return file("clusters", placed_ms, taken_ms, refusals, seen=seen)


# Milliseconds: when each was put where it is, when taken last; how often refused.
TABLE: Mapping[str, tuple[tuple[Watched, ...], list[State]]] = {
    "as it started": ((clusters(10, 5_000), routes(20, 9_000)), OK),
    "moved and taken": ((clusters(10, 20_012), routes(20_000, 20_017)), OK),
    "refused": ((clusters(10, 20_012), routes(20_000, 9_000, 1)), [State.OPEN]),
    "written in place": ((clusters(10, 9_012), routes(20_000, 9_017)), [State.OPEN]),
    "never taken": ((clusters(10, 9_012), routes(20, 0, 1)), [State.OPEN]),
    "holds nothing": (
        (clusters(10, 20_012), routes(20_000, 20_017, seen=Seen.NOTHING)),
        [State.OPEN],
    ),
    "gone": ((clusters(10, 9_012), routes(0, 9_017, seen=Seen.GONE)), [State.OPEN]),
    "refused and mended": ((clusters(10, 30_012), routes(30_000, 30_017, 1)), OK),
    "refused, moved while an earlier state was still being applied": (
        (clusters(20_000, 20_030), routes(20_006, 20_014, 1)),
        [State.UNKNOWN],
    ),
    "and so quickly that their times are the same": (
        (clusters(20_000, 20_020), routes(20_000, 20_010, 1)),
        [State.UNKNOWN],
    ),
    "and then any file was moved": (
        (clusters(20_000, 40_012), routes(20_006, 20_014, 1)),
        [State.OPEN],
    ),
    "or had been taken": ((clusters(20_000, 40_012), routes(20_006, 40_017, 1)), OK),
    "refused with the clock set back an hour": (
        (clusters(10, 20_012), routes(20_000, 20_017 + HOUR_MS, 1)),
        [State.UNKNOWN],
    ),
    "out of sight": (
        (clusters(0, 20_012, seen=Seen.HIDDEN), routes(0, 20_017, seen=Seen.HIDDEN)),
        OK,
    ),
    "out of sight, and refused once": (
        (clusters(0, 20_012, seen=Seen.HIDDEN), routes(0, 20_017, 1, Seen.HIDDEN)),
        [State.UNKNOWN],
    ),
    "out of sight, and refused": (
        (clusters(0, 20_012, seen=Seen.HIDDEN), routes(0, 9_017, 1, Seen.HIDDEN)),
        [State.OPEN],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_file_that_is_not_served_is_never_called_ok(name: str) -> None:
    files, states = TABLE[name]
    told = list(judged(files))
    assert [each.state for each in told] == states
    assert all("routes.yaml" in each.text for each in told)


def test_files_of_another_folder_are_read_at_other_times() -> None:
    elsewhere = Watched(Path("/etc/other/a.yaml"), 90_000, 0, Seen.RESOURCES, 80_000)
    assert list(judged([elsewhere, routes(20_000, 20_017, 1)])) == []


def test_files_that_are_mounted_are_read_on_one_move() -> None:
    names = {"clusters": (20_020, 0), "routes": (20_010, 1)}
    files = [
        Watched(FOLDER / name, taken, refusals, Seen.RESOURCES, 20_000, mounted=True)
        for name, (taken, refusals) in names.items()
    ]
    assert list(judged(files)) == []


async def test_a_folder_that_may_not_be_looked_into_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: Path) -> bool:
        raise PermissionError

    monkeypatch.setattr(Path, "exists", refused)
    (told,) = await observations(Path("/run/authz/admin.sock"))
    assert told.state == State.UNKNOWN
    assert "/run/authz " in told.text


# --- Certificates -----------------------------------------------------------------


def as_it_is(pem: bytes) -> bytes:
    return pem


def with_a_comment(pem: bytes) -> bytes:
    return "# Főtanúsítvány\n".encode() + pem


def no_certificate(_: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\nno\n"


@pytest.mark.parametrize(
    ("spoil", "used"),
    [(as_it_is, True), (with_a_comment, True), (no_certificate, False)],
)
def test_a_certificate_is_found_among_those_in_use(
    tmp_path: Path, spoil: Callable[[bytes], bytes], *, used: bool
) -> None:
    pem = new_authority(tmp_path, "a").root.read_bytes()
    assert certificates_in_use([dump(spoil(pem))], [shown(pem)]) == {"ours": used}


def test_a_certificate_with_the_serial_number_of_another_is_not_that(
    tmp_path: Path,
) -> None:
    pem = new_authority(tmp_path, "a").root.read_bytes()
    other = shown(pem)
    other["ca_cert"][0]["valid_from"] = "2020-01-01T00:00:00Z"
    assert certificates_in_use([dump(pem)], [other]) == {"ours": False}


def dump(pem: bytes) -> dict[str, Any]:
    trusted = {"trusted_ca": {"inline_bytes": b64encode(pem).decode()}}
    secret = {"name": "ours", "secret": {"validation_context": trusted}}
    return {"dynamic_active_secrets": [secret]}


def shown(pem: bytes) -> dict[str, Any]:
    """Return what Envoy says of a certificate."""
    (found,) = ssl.create_default_context(cadata=pem.decode()).get_ca_certs()
    start_s = ssl.cert_time_to_seconds(str(found["notBefore"]))
    told = {
        "serial_number": str(found["serialNumber"]).lower(),
        "valid_from": f"{datetime.fromtimestamp(start_s, UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    return {"ca_cert": [told], "cert_chain": []}
