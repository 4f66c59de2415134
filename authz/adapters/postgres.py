"""Connections to PostgreSQL, and its errors in our words."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from authz.adapters.tls_files import TlsOptions, why_unusable
from authz.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
    PoolConnection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

CONNECT_TIMEOUT_S = 5.0
_TLS = TlsOptions("sslrootcert", "sslcert", "sslkey", "sslpassword")
_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # None of several hosts may be written to, for example.
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what driver and network raise into StoreUnavailable."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        msg = "the role lacks a right in the database: see `authz grants`"
        raise StoreUnavailable(msg) from error
    except _ERRORS as error:
        msg = f"the database does not answer: {type(error).__name__}"
        raise StoreUnavailable(msg) from error


def why_never(error: StoreUnavailable, url: str) -> str | None:
    """Return why we and the server at the URL will not do; None if we may yet."""
    match error.__cause__:
        case asyncpg.InvalidAuthorizationSpecificationError():
            return "the server refuses the user or password"
        case asyncpg.InvalidCatalogNameError():
            return "the server has no such database"
        case ssl.SSLCertVerificationError(verify_message=reason):
            return f"the certificate of the server is not trusted: {reason}"
        case ConnectionError() as cause if "rejected SSL" in str(cause):
            return "the server does not speak TLS"
        case OSError():
            return why_unusable(dict(parse_qsl(urlsplit(url).query)), _TLS)
    return None


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """Open one connection. Raises StoreUnavailable."""
    with translated_errors(), _settings_checked():
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        yield connection
    except BaseException:
        connection.terminate()  # a server that hangs does not say goodbye
        raise
    await connection.close(timeout=CONNECT_TIMEOUT_S)


@asynccontextmanager
async def pooled(url: str) -> AsyncIterator[Pool]:
    """Open a pool that connects when it is first used."""
    with _settings_checked():
        pool = asyncpg.create_pool(
            url, min_size=0, max_size=8, timeout=CONNECT_TIMEOUT_S, reset=_keep_as_it_is
        )
        await pool
    try:
        yield pool
    finally:
        pool.terminate()


async def _keep_as_it_is(_connection: object) -> None:
    """Spare a round trip: look-ups leave nothing behind in their sessions."""


@contextmanager
def _settings_checked() -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError:
        raise  # a ValueError, too, but none of our settings
    except (asyncpg.ClientConfigurationError, ValueError) as error:
        if "root certificate" in str(error):
            msg = "AUTHZ_DATABASE_URL: this sslmode needs an sslrootcert"
        else:
            msg = "AUTHZ_DATABASE_URL is not a PostgreSQL URL"
        raise ConfigError(msg) from None
