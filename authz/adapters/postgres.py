"""Connections to PostgreSQL, and its errors in our words."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg

from authz.adapters.tls_files import TlsOptions, why_unusable
from authz.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from urllib.parse import SplitResult

    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
    PoolConnection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

CONNECT_TIMEOUT_S = 5.0
_PORT = 5432
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


@contextmanager
def refusing_the_hopeless(url: str) -> Iterator[None]:
    """Raise ConfigError in place of a StoreUnavailable that no waiting would mend."""
    try:
        yield
    except StoreUnavailable as error:
        reason = _why_never(error, url)
        if reason is None:
            raise
        msg = f"AUTHZ_DATABASE_URL: {reason}"
        raise ConfigError(msg) from None


def _why_never(error: StoreUnavailable, url: str) -> str | None:
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
        connection = await _connect(url, timeout=CONNECT_TIMEOUT_S)
    try:
        yield connection
    except BaseException:
        connection.terminate()  # a server that hangs does not say goodbye
        raise
    with suppress(TimeoutError):  # all is done, and the line is ended either way
        await connection.close(timeout=CONNECT_TIMEOUT_S)


@asynccontextmanager
async def pooled(url: str) -> AsyncIterator[Pool]:
    """Open a pool that connects when it is first used."""
    with _settings_checked():
        pool: Pool = asyncpg.create_pool(  # type: ignore[call-overload] # by `connect`
            url,
            min_size=0,
            max_size=8,
            timeout=CONNECT_TIMEOUT_S,
            connect=_connect,
            reset=_keep_as_it_is,
        )
        await pool
    try:
        yield pool
    finally:
        pool.terminate()


@asynccontextmanager
async def lent(pool: Pool) -> AsyncIterator[PoolConnection]:
    """Take a connection from the pool; one that is given up is not used again."""
    connection = await pool.acquire()
    try:
        yield connection
    except BaseException:
        # The driver would wait for the server to confirm that it has stopped;
        # a server that hangs does not.
        connection.terminate()
        raise
    finally:
        await pool.release(connection)


async def _connect(url: str, **options: Any) -> Connection:  # noqa: ANN401 - theirs
    """Connect to whichever host will do; all at once, for one may hang.

    The driver would ask one after the other, and spend all the time on that one.
    """
    hosts = hosts_of(url)
    pending: set[asyncio.Task[Connection]] = {
        asyncio.ensure_future(asyncpg.connect(url, **options, **host)) for host in hosts
    }
    errors: list[BaseException] = []
    try:
        while pending:
            done, pending = await asyncio.wait(
                pending, return_when=asyncio.FIRST_COMPLETED
            )
            good = [attempt for attempt in done if attempt.exception() is None]
            for superfluous in good[1:]:
                _end(superfluous)
            if good:
                return good[0].result()
            errors += [error for each in done if (error := each.exception())]
    finally:
        for attempt in pending:
            attempt.cancel()
            attempt.add_done_callback(_end)
    # What a server says tells more than that another one is a standby, or away.
    raise max(errors, key=lambda error: isinstance(error, asyncpg.PostgresError))


def _end(attempt: asyncio.Task[Connection]) -> None:
    """End the connection that nobody waits for; it may be there before the cancel."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


def hosts_of(url: str) -> list[dict[str, Any]]:
    """Return the hosts of a URL as options of the driver; of one, none is needed."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    named = parts.netloc.rpartition("@")[2].split(",")
    if len(named) > 1:
        return [_host(urlsplit(f"//{host}")) for host in named]
    folders = query.get("host", "").split(",")
    if len(folders) == 1:
        return [{}]
    ports = query.get("port", "").split(",")
    ports *= len(folders) if len(ports) == 1 else 1
    return [
        {"host": host, "port": int(port or _PORT)}
        for host, port in zip(folders, ports, strict=True)
    ]


def _host(parts: SplitResult) -> dict[str, Any]:
    return {"host": unquote(parts.hostname or ""), "port": parts.port or _PORT}


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
