"""Whether Envoy serves what stands in its files, as its admin interface lets one see.

It counts what it has rejected, and does not say whether that still stands there. So
when it last took a file is compared with when the file was put where it is; and the
certificates that it read last with those that it uses.
"""

from __future__ import annotations

import json
import ssl
from base64 import b64decode
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from authz.cli import probes
from authz.cli.findings import OK, OPEN, UNKNOWN, Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_STATS = "/stats?filter=update_(time%7Crejected%7Cfailure)$"
_ASKED = (_STATS, "/config_dump", "/certs")
# Where Kubernetes mounts a ConfigMap, this link is what it moves into place.
_CURRENT = "..data"
_SECRETS = ("dynamic_active_secrets", "dynamic_warming_secrets")
_VERSION_TAG = 0xA0


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that Envoy watches, and the end of the names of its statistics."""

    path: Path
    stats: str


async def findings(admin: Path) -> list[Finding]:
    """Return what was found, one line each; nothing where there is no Envoy."""
    if not admin.exists():
        return []
    answers = [await probes.get_from(admin, path) for path in _ASKED]
    if any(status != HTTPStatus.OK for status, _ in answers):
        return [Finding(UNKNOWN, "Envoy's files: its admin interface does not answer")]
    return _judged(*(body for _, body in answers))


def _judged(stats: bytes, config: bytes, used: bytes) -> list[Finding]:
    counts = _counts(stats.decode())
    dump = json.loads(config)
    sources = [source for source in {*_sources(dump)} if _known(source, counts)]
    wrong = [
        *_wrong_files(sorted(sources, key=lambda source: source.path), counts),
        *_wrong_certificates(dump["configs"], json.loads(used)["certificates"]),
    ]
    names = ", ".join(sorted(source.path.name for source in sources))
    return wrong or [Finding(OK, f"Envoy serves what stands in its files: {names}")]


def _counts(text: str) -> Mapping[str, int]:
    lines = (line.partition(": ") for line in text.splitlines())
    return {name: int(value) for name, _, value in lines if value.isdecimal()}


def _sources(config: Any) -> Iterator[_Source]:  # noqa: ANN401 - whatever JSON holds
    """Find the files that are named anywhere in a configuration."""
    if isinstance(config, list):
        yield from chain.from_iterable(map(_sources, config))
    elif isinstance(config, dict):
        for name, value in config.items():
            match value:
                case {"path_config_source": {"path": path}}:
                    yield _Source(Path(path), _stats(name, config))
            yield from _sources(value)


def _stats(name: str, around: Mapping[str, Any]) -> str:
    match name:
        case "lds_config":
            return "listener_manager.lds"
        case "cds_config":
            return "cluster_manager.cds"
        case "sds_config":
            return f"sds.{around['name']}"
        case _:
            return f".rds.{around.get('route_config_name')}"


def _of(source: _Source, what: str, counts: Mapping[str, int]) -> list[int]:
    end = f"{source.stats}.{what}"
    return [count for name, count in counts.items() if name.endswith(end)]


def _known(source: _Source, counts: Mapping[str, int]) -> bool:
    """Leave out what only a rejected listener or cluster names."""
    return bool(_of(source, "update_time", counts))


def _wrong_files(
    sources: Iterable[_Source], counts: Mapping[str, int]
) -> Iterator[Finding]:
    for source in sources:
        if not source.path.parent.exists():
            if sum(_of(source, "update_rejected", counts)) or sum(
                _of(source, "update_failure", counts)
            ):
                told = f"Envoy has rejected a state of {source.path} since it started"
                yield Finding(UNKNOWN, f"{told}: run this where that can be read")
            continue
        try:
            placed_ms = _placed_ms(source.path)
        except FileNotFoundError:
            yield Finding(OPEN, f"{source.path} is gone: Envoy could not start anew")
            continue
        if placed_ms > min(_of(source, "update_time", counts)):
            told = f"Envoy does not serve what stands in {source.path}"
            yield Finding(OPEN, f"{told}: rejected, see its log, or edited in place")


def _placed_ms(path: Path) -> int:
    """Tell when a file was moved or written to where it stands, as Envoy cuts it."""
    changed_ns = path.lstat().st_ctime_ns
    current = path.parent / _CURRENT
    if current.is_symlink():
        changed_ns = max(changed_ns, current.lstat().st_ctime_ns)
    return changed_ns // 1_000_000


def _wrong_certificates(
    configs: Iterable[Mapping[str, Any]], used: Iterable[Mapping[str, Any]]
) -> Iterator[Finding]:
    in_use = {
        int(certificate["serial_number"], 16)
        for each in used
        for certificate in (*each["ca_cert"], *each["cert_chain"])
    }
    for secret in chain.from_iterable(
        config.get(kind, ()) for config in configs for kind in _SECRETS
    ):
        certificate = _certificate(secret.get("secret", {}))
        if certificate is not None and _serial(certificate) not in in_use:
            told = f"Envoy does not use what stands in the files of {secret['name']}"
            yield Finding(OPEN, f"{told}: rejected, see its log")


def _certificate(secret: Mapping[str, Any]) -> bytes | None:
    match secret:
        case {"tls_certificate": {"certificate_chain": {"inline_bytes": text}}}:
            return b64decode(text)
        case {"validation_context": {"trusted_ca": {"inline_bytes": text}}}:
            return b64decode(text)
    return None


def _serial(pem: bytes) -> int | None:
    """Return the serial number of the first certificate; None if it is none.

    RFC 5280, section 4.1: the first field of the first field, after the version.
    """
    try:
        text = pem.decode("ascii")
        end = text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(text[text.index(ssl.PEM_HEADER) : end])
        content, _ = _element(_element(der)[0])
        if content[0] == _VERSION_TAG:
            content = _element(content)[1]
        return int.from_bytes(_element(content)[0])
    except (ValueError, IndexError):
        return None


def _element(der: bytes) -> tuple[bytes, bytes]:
    """Split off the first element: its content, and what follows it."""
    length, start = der[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start])
    return der[start : start + length], der[start + length :]
