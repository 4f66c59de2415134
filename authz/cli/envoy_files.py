"""Whether Envoy serves what stands in its files, as its admin interface lets one see.

It counts what it has rejected, and does not say whether that still stands there. So
when it last took a file is compared with when the file was put where it is, and with
when it took the others of the folder: on any move into it, Envoy reads them all.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from authz.cli import probes
from authz.cli.envoy_certificates import certificates_in_use
from authz.cli.observation import Observation, State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_STATS = "/stats?filter=update_(time%7Crejected%7Cfailure)$"
_ASKED = (_STATS, "/config_dump", "/certs")
# Where Kubernetes mounts a ConfigMap, this link is what it moves into place.
_CURRENT = "..data"
_RESOURCE = re.compile(rb"^[^#\n]*@type", re.MULTILINE)
# What is read on one move is applied within 30 ms, as measured; what is further apart
# than a second was read on different ones.
_APPLIED_MS = 100
_APART_MS = 1000
_AGAIN = "move any file into its folder to have all read again"
_WHY = "rejected (see its log), edited in place, or its owner, mode or links changed"


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that Envoy watches, and the end of the names of its statistics."""

    path: Path
    stats: str


class Seen(Enum):
    """What stands where a file should."""

    RESOURCES = auto()
    NOTHING = auto()
    GONE = auto()
    HIDDEN = auto()


@dataclass(frozen=True, slots=True)
class Watched:
    """What Envoy tells of a file, and what is seen of it from here."""

    path: Path
    taken_ms: int  # 0: no state of it yet
    refusals: int
    seen: Seen
    placed_ms: int = 0
    mounted: bool = False  # then it is placed together with the others of its folder

    def after_ms(self, other: Watched) -> int:
        """Tell how much later than another it was taken."""
        return self.taken_ms - other.taken_ms


async def observations(admin: Path) -> list[Observation]:
    """Ask a running Envoy, and look at its files."""
    try:
        found = admin.exists()
    except PermissionError:
        return [_unknown(f"{admin.parent} may not be looked into")]
    if not found:
        return [_unknown(f"no admin interface at {admin}")]
    answers = [await probes.get_from(admin, path) for path in _ASKED]
    if any(status != HTTPStatus.OK for status, _ in answers):
        return [_unknown("its admin interface does not answer")]
    return _observed(*(body for _, body in answers))


def _unknown(text: str) -> Observation:
    return Observation(State.UNKNOWN, f"Envoy's files: {text}")


def _observed(stats: bytes, config: bytes, used: bytes) -> list[Observation]:
    counts, dump = _counts(stats.decode()), json.loads(config)
    in_use = certificates_in_use(dump["configs"], json.loads(used)["certificates"])
    files = [
        file
        for source in sorted({*_sources(dump)}, key=lambda source: source.path)
        if (file := _watched(source, counts)) and not _was_mended(source, file, in_use)
    ]
    told = "Envoy does not use what stands in the files of"
    wrong = [
        *judged(files),
        *(
            Observation(State.OPEN, f"{told} {name}: rejected, see its log")
            for name, is_used in in_use.items()
            if not is_used
        ),
    ]
    names = ", ".join(sorted(file.path.name for file in files))
    return wrong or [
        Observation(State.OK, f"Envoy serves what stands in its files: {names}")
    ]


def judged(files: Sequence[Watched]) -> Iterator[Observation]:
    """Say which files Envoy does not serve, or may not serve."""
    for file in files:
        others = [
            other
            for other in files
            if other is not file and other.path.parent == file.path.parent
        ]
        if file.seen is Seen.GONE:
            told = f"{file.path} is gone: Envoy could not start anew"
            yield Observation(State.OPEN, told)
        elif _is_not_served(file, others):
            told = f"Envoy does not serve what stands in {file.path}: {_WHY}; {_AGAIN}"
            yield Observation(State.OPEN, told)
        elif file.seen is Seen.NOTHING:
            told = f"{file.path} holds nothing: Envoy could not start anew"
            yield Observation(State.OPEN, told)
        elif file.refusals and _is_undecided(file, others):
            told = f"Envoy has refused a state of {file.path} since it started"
            yield Observation(State.UNKNOWN, f"{told}, maybe this one: {_AGAIN}")


def _is_not_served(file: Watched, others: Sequence[Watched]) -> bool:
    if file.placed_ms > file.taken_ms:
        return True
    behind = any(other.after_ms(file) > _APART_MS for other in others)
    return bool(file.refusals) and behind


def _is_undecided(file: Watched, others: Sequence[Watched]) -> bool:
    """Tell whether it may have been refused although it was placed before it was taken.

    Either another file was moved just before it, and what stood here then was still
    being applied; or the clock was set back.
    """
    return file.seen is Seen.HIDDEN or any(
        _was_read_before(file, other)
        or (not other.refusals and file.after_ms(other) > _APART_MS)
        for other in others
    )


def _was_read_before(file: Watched, other: Watched) -> bool:
    """Tell whether the move of another file may be the last on which it was taken."""
    # At the same time, too: clocks of file systems stand still for some milliseconds.
    just_before = (
        not file.mounted
        and other.placed_ms <= file.placed_ms
        and file.taken_ms - other.placed_ms <= _APPLIED_MS
    )
    # On its own move, the other one was taken again.
    return just_before and (other.after_ms(file) >= 0 or bool(other.refusals))


def _watched(source: _Source, counts: Mapping[str, int]) -> Watched | None:
    """Return None where only a rejected listener or cluster names the file."""
    taken = _of(source, "update_time", counts)
    if not taken:
        return None
    refusals = [
        *_of(source, "update_rejected", counts),
        *_of(source, "update_failure", counts),
    ]
    return Watched(source.path, min(taken), sum(refusals), *_look(source.path))


def _was_mended(source: _Source, file: Watched, in_use: Mapping[str, bool]) -> bool:
    """Tell whether it was refused for a certificate that has been mended since."""
    name = source.stats.removeprefix("sds.")
    return not file.taken_ms and in_use.get(name, False)


def _look(path: Path) -> tuple[Seen, int, bool]:
    try:
        # When it was moved or written to where it stands, as Envoy cuts it.
        placed_ns = path.lstat().st_ctime_ns
        holds = _RESOURCE.search(path.read_bytes())
        current = path.parent / _CURRENT
        mounted = current.is_symlink()
        if mounted:
            placed_ns = max(placed_ns, current.lstat().st_ctime_ns)
    except FileNotFoundError:
        return (Seen.GONE if path.parent.exists() else Seen.HIDDEN), 0, False
    except OSError:
        return Seen.HIDDEN, 0, False
    seen = Seen.RESOURCES if holds else Seen.NOTHING
    return seen, placed_ns // 1_000_000, mounted


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
