"""Settings: the only place that knows the names of environment variables."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from authz.core.credential import Peppers
from authz.errors import ConfigError
from authz.log import Format, Level

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")
_DURATION = re.compile(r"(?P<number>[1-9]\d{0,5})(?P<unit>[smhd])")
_LEAST_PEPPER_BYTES, _MOST_PEPPER_BYTES = 32, 4096
_LEAST_SECRET = 32
_REDIS_SCHEMES = (
    "redis://",
    "rediss://",
    "unix://",
    *("redis+sentinel://", "rediss+sentinel://"),
    *("redis+cluster://", "rediss+cluster://"),
)
_WRITABLE = (["read-write"], ["primary"])
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: str) -> timedelta:
    """Read ``3s``, ``15m``, ``24h`` or ``90d``. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        msg = "a duration is a number and s, m, h or d, as in 90d"
        raise ValueError(msg)
    return timedelta(**{_UNITS[match["unit"]]: int(match["number"])})


def parse_address(text: str) -> tuple[str, int]:
    """Read ``host:port``; an IPv6 host stands in brackets. Raises ValueError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:  # noqa: PLR2004 - the last port
        msg = "an address is host:port, as in 127.0.0.1:8080"
        raise ValueError(msg)
    return match["host"].strip("[]"), int(match["port"])


def _address(text: str) -> str:
    parse_address(text)
    return text


def _url_of(*schemes: str) -> AfterValidator:
    def check(url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if text and not text.startswith(schemes):
            msg = f"a URL begins with {' or '.join(schemes)}"
            raise ValueError(msg)
        return url

    return AfterValidator(check)


def _one_database(url: SecretStr) -> SecretStr:
    """Refuse hosts of which one may be behind: versions would go back."""
    parts = urlsplit(url.get_secret_value())
    query = parse_qs(parts.query)
    several = (
        "," in parts.netloc.rpartition("@")[2] or "," in query.get("host", [""])[0]
    )
    if several and query.get("target_session_attrs") not in _WRITABLE:
        msg = "several hosts need target_session_attrs=read-write or primary"
        raise ValueError(msg)
    return url


def _not_guessable(secret: SecretStr) -> SecretStr:
    """Refuse what could be tried out: records of Redis can be tested offline."""
    if 0 < len(secret) < _LEAST_SECRET:
        msg = f"a secret has at least {_LEAST_SECRET} characters"
        raise ValueError(msg)
    return secret


def _optional_duration(text: str) -> str:
    if text:
        parse_duration(text)
    return text


class Settings(BaseSettings):
    """Everything that can be set, as ``AUTHZ_`` and the name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="AUTHZ_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    database_url: Annotated[
        SecretStr,
        _url_of("postgresql://", "postgres://"),
        AfterValidator(_one_database),
    ] = SecretStr("")
    redis_url: Annotated[SecretStr, _url_of(*_REDIS_SCHEMES)] = SecretStr("")
    cache_secret: Annotated[SecretStr, AfterValidator(_not_guessable)] = SecretStr("")
    listen: Path = Path("/run/authz")
    metrics_listen: Annotated[str, AfterValidator(_address)] = "127.0.0.1:9464"
    key_pepper_file: Path | None = None
    key_old_pepper_files: str = ""
    workers: int = Field(1, ge=1, le=64)
    cache_ttl_s: float = Field(30, ge=0, le=3600)
    cache_size: int = Field(100_000, ge=1)
    max_stale_s: float = Field(300, ge=0, le=86_400)
    unknown_keys_per_s: float = Field(100, gt=0)
    key_max_lifetime: Annotated[str, AfterValidator(_optional_duration)] = ""
    actor: str = Field("", pattern=r"^[ -~]{0,200}$")
    log_level: Level = "info"
    log_format: Format = "json"


def load_settings(file: Path | None = None) -> Settings:
    """Read the environment, then a file of lines NAME=value for what it lacks.

    Raises ConfigError naming the first wrong variable.
    """
    try:
        return Settings(_env_file=file)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        msg = f"AUTHZ_{str(first['loc'][0]).upper()}: {first['msg']}"
        raise ConfigError(msg) from None


def load_peppers(settings: Settings) -> Peppers:
    """Read the files of the peppers. Raises ConfigError naming the variable."""
    current = settings.key_pepper_file
    old = filter(None, settings.key_old_pepper_files.split(","))
    return Peppers(
        None if current is None else _read_pepper("AUTHZ_KEY_PEPPER_FILE", current),
        [_read_pepper("AUTHZ_KEY_OLD_PEPPER_FILES", Path(path)) for path in old],
    )


def _read_pepper(variable: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_PEPPER_BYTES + 1)
    except OSError as error:
        msg = f"{variable}: cannot read {path}: {error.strerror}"
        raise ConfigError(msg) from None
    pepper = content.strip(b"\r\n")
    if len(pepper) < _LEAST_PEPPER_BYTES or len(content) > _MOST_PEPPER_BYTES:
        msg = (
            f"{variable}: a pepper has {_LEAST_PEPPER_BYTES} to"
            f" {_MOST_PEPPER_BYTES} bytes: {path}"
        )
        raise ConfigError(msg)
    return pepper
