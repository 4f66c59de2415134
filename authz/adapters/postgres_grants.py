"""What the roles of the service and of the command line may do in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authz.adapters.postgres import translated_errors
from authz.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from authz.adapters.postgres import Connection

# By table, in PostgreSQL's words. Nobody may change or remove what was audited,
# or say when it was and as which role.
SERVICE = {
    "schema_migrations": "SELECT",
    "keys": "SELECT",
    "secrets": "SELECT",
    "last_used": "SELECT, INSERT, UPDATE",
    "usage": "SELECT, INSERT, UPDATE",
    "usage_requests": "SELECT, INSERT, UPDATE, DELETE",
}
MANAGER = {
    "schema_migrations": "SELECT",
    "keys": "SELECT, INSERT, UPDATE",
    "secrets": "SELECT, INSERT, UPDATE, DELETE",
    "last_used": "SELECT, DELETE",
    "audit": "SELECT, INSERT (actor, action, key_id, before, after)",
    "usage": "SELECT",
}

_ROLE = "SELECT quote_ident(rolname) FROM pg_roles WHERE rolname = $1"
# A superuser may act as any role.
_OWNED = """
SELECT relname FROM pg_class
 WHERE oid = ANY($2::text[]::regclass[]) AND pg_has_role($1::name, relowner, 'MEMBER')
"""
_PLACE = "SELECT quote_ident(current_database()), quote_ident(current_schema())"


async def grant(
    connection: Connection, role: str, privileges: Mapping[str, str]
) -> Sequence[str]:
    """Give a role these privileges and no others; return them, for people."""
    with translated_errors():
        async with connection.transaction():
            quoted = await _quoted(connection, role)
            (database, schema) = (await connection.fetch(_PLACE))[0]
            tables = sorted({*SERVICE, *MANAGER})
            for statement in (
                f"REVOKE ALL ON {', '.join(tables)} FROM {quoted}",
                f"GRANT CONNECT ON DATABASE {database} TO {quoted}",
                f"GRANT USAGE ON SCHEMA {schema} TO {quoted}",
                *(f"GRANT {p} ON {t} TO {quoted}" for t, p in privileges.items()),
            ):
                await connection.execute(statement)
    return [f"{privilege} ON {table}" for table, privilege in privileges.items()]


async def _quoted(connection: Connection, role: str) -> str:
    """Return the role as PostgreSQL quotes it. Refused if it owns the tables."""
    quoted: str | None = await connection.fetchval(_ROLE, role)
    if quoted is None:
        msg = f"there is no role {role!r}"
        raise Refused(msg)
    owned = await connection.fetch(_OWNED, role, sorted({*SERVICE, *MANAGER}))
    if owned:
        msg = (
            f"the role {role!r} owns the tables, or may act as the role that does: "
            "nothing can be kept from it"
        )
        raise Refused(msg)
    return quoted
