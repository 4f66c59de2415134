"""TLS at the door: which versions, and a certificate that is renewed while it runs."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import yaml

from authz.cli.envoy_files import observations
from authz.cli.observation import State
from tests.certificates import Authority, new_authority
from tests.failing import until
from tests.gateway import own_gateway
from tests.live import WITHIN_S, Live, mount, put, stats, tls_socket
from tests.raw import http1

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from tests.gateway import Stores

    Pair = Mapping[str, bytes]

SECRET = "gateway"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return new_authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module", params=[mount, None], ids=["mounted", "moved"])
async def live(
    request: pytest.FixtureRequest,
    stores: Stores,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Live]:
    logs, mounted = tmp_path_factory.mktemp("tls"), bool(request.param)
    pair = a_pair(authority, logs)
    async with running(stores, authority, logs, pair, mounted=mounted) as found:
        yield found


@asynccontextmanager
async def running(
    stores: Stores, authority: Authority, logs: Path, pair: Pair, *, mounted: bool
) -> AsyncIterator[Live]:
    def edit(directory: Path) -> None:
        turn_on(directory)
        (directory / "tls").mkdir()
        lay_out(directory / "tls", pair, mounted=mounted)

    async with own_gateway(stores, logs, edit) as gateway:
        trusted = ssl.create_default_context(cafile=authority.root)
        yield Live(gateway, await gateway.new_key(), trusted)


def turn_on(directory: Path) -> None:
    file = directory / "listener.yaml"
    config = yaml.safe_load(file.read_text())
    chain = config["resources"][0]["filter_chains"][0]
    chain["transport_socket"] = tls_socket(directory)
    file.write_text(yaml.safe_dump(config, sort_keys=False))


def a_pair(authority: Authority, folder: Path) -> Pair:
    certificate, key = authority.issue(folder, "gateway.example.com", "127.0.0.1")
    return {"tls.crt": certificate.read_bytes(), "tls.key": key.read_bytes()}


def lay_out(folder: Path, pair: Pair, *, mounted: bool) -> None:
    if mounted:
        mount(folder, pair)
    else:
        for name, content in pair.items():
            put(folder / name, content)


def renew(live: Live, pair: Pair) -> None:
    folder = live.folder / "tls"
    lay_out(folder, pair, mounted=(folder / "..data").is_symlink())


async def shown(live: Live) -> bytes:
    """Return the certificate that a new connection is shown."""
    async with asyncio.timeout(WITHIN_S):
        _, writer = await asyncio.open_connection(
            "127.0.0.1", live.gateway.port, ssl=live.tls
        )
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
    assert isinstance(found, bytes)
    return found


def of(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair["tls.crt"].decode())


async def test_a_renewed_certificate_meets_new_connections_and_ends_no_stream(
    live: Live, authority: Authority, tmp_path: Path
) -> None:
    renewed = a_pair(authority, tmp_path)
    async with live.streaming(), live.client() as kept:
        assert (await kept.get("/healthz")).status_code == 200
        renew(live, renewed)

        async def is_shown() -> bool:
            return await shown(live) == of(renewed)

        await until(is_shown, WITHIN_S)
        assert (await kept.get("/healthz")).status_code == 200
        assert (await live.ask()).status_code == 200
        assert await live.served() == State.OK


async def test_a_certificate_that_is_written_in_place_is_taken(
    stores: Stores, authority: Authority, tmp_path: Path
) -> None:
    pair, renewed = a_pair(authority, tmp_path), a_pair(authority, tmp_path)
    async with running(stores, authority, tmp_path, pair, mounted=False) as live:
        for name, content in renewed.items():
            (live.folder / "tls" / name).write_bytes(content)
        await until_shown(live, renewed)
        assert await live.served() == State.OK


async def test_a_start_with_a_wrong_pair_is_said_until_the_right_one_is_there(
    stores: Stores, authority: Authority, tmp_path: Path
) -> None:
    pair, right = a_pair(authority, tmp_path), a_pair(authority, tmp_path)
    wrong = {**pair, "tls.key": right["tls.key"]}
    async with running(stores, authority, tmp_path, wrong, mounted=False) as live:
        found = await observations(live.gateway.run / "admin.sock")
        assert {each.state for each in found} == {State.OPEN}
        renew(live, right)
        await until_shown(live, right)
        assert await live.served() == State.OK


async def until_shown(live: Live, pair: Pair) -> None:
    async def is_shown() -> bool:
        try:
            return await shown(live) == of(pair)
        except OSError:
            return False

    await until(is_shown, WITHIN_S)


def other_key(old: Pair, new: Pair) -> Pair:
    return {**new, "tls.key": old["tls.key"]}


def broken(_: Pair, new: Pair) -> Pair:
    return {**new, "tls.crt": b"-----BEGIN CERTIFICATE-----\nno\n"}


def empty(_: Pair, new: Pair) -> Pair:
    return dict.fromkeys(new, b"")


@pytest.mark.parametrize("spoil", [other_key, broken, empty])
async def test_a_wrong_certificate_is_refused_and_said_while_the_old_one_is_shown(
    live: Live,
    authority: Authority,
    tmp_path: Path,
    spoil: Callable[[Pair, Pair], Pair],
) -> None:
    before, good = await shown(live), a_pair(authority, tmp_path)
    failed = await failures(live)
    old = {
        name: (live.folder / "tls" / name).read_bytes()
        for name in ("tls.crt", "tls.key")
    }
    async with live.streaming():
        renew(live, spoil(old, good))

        async def refused() -> bool:
            return await failures(live) > failed

        await until(refused, WITHIN_S)
        assert await shown(live) == before
        said = await live.said()
        assert (said.state, SECRET in said.text) == (State.OPEN, True)
        renew(live, good)

        async def is_shown() -> bool:
            return await shown(live) == of(good)

        await until(is_shown, WITHIN_S)
        assert await live.served() == State.OK
    assert (
        "Failed to reload certificates" in (live.gateway.logs / "envoy.log").read_text()
    )


async def failures(live: Live) -> int:
    name = f"sds.{SECRET}.key_rotation_failed"
    return (await stats(live.gateway.run, f"^{name}$")).get(name, 0)


async def test_a_broken_tls_yaml_is_refused_and_renewals_go_on(
    live: Live, authority: Authority, tmp_path: Path
) -> None:
    good, renewed = live.text("tls.yaml"), a_pair(authority, tmp_path)
    refused = await live.refused("tls.yaml")
    live.put(tls="resources: [")
    await live.until_refused("tls.yaml", refused)
    said = await live.said()
    assert (said.state, "tls.yaml" in said.text) == (State.OPEN, True)
    renew(live, renewed)

    async def is_shown() -> bool:
        return await shown(live) == of(renewed)

    await until(is_shown, WITHIN_S)
    taken = await live.count("tls.yaml", "success")
    live.put(tls=good)
    await live.until_taken("tls.yaml", taken)
    assert await live.served() == State.OK


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
async def test_the_door_speaks_tls_1_2_or_later(
    live: Live, authority: Authority, version: ssl.TLSVersion, *, accepted: bool
) -> None:
    offered = ssl.create_default_context(cafile=authority.root)
    offered.set_ciphers("DEFAULT:@SECLEVEL=0")  # or OpenSSL itself leaves 1.1 out
    offered.minimum_version = offered.maximum_version = version
    opening = asyncio.open_connection("127.0.0.1", live.gateway.port, ssl=offered)
    if accepted:
        _, writer = await opening
        writer.close()
    else:
        with pytest.raises(ssl.SSLError):
            await opening


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
async def test_the_door_agrees_on_both_protocols(
    live: Live, authority: Authority, protocol: str
) -> None:
    offered = ssl.create_default_context(cafile=authority.root)
    offered.set_alpn_protocols([protocol])
    _, writer = await asyncio.open_connection(
        "127.0.0.1", live.gateway.port, ssl=offered
    )
    agreed = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    assert agreed == protocol


async def test_nothing_is_answered_in_clear_text(live: Live) -> None:
    answered = await http1(live.gateway.port, HEALTHZ)
    assert answered.status == 0
