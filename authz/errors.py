"""What may go wrong. A denial is no error but a value (core.model.Deny).

AuthzError
├── ConfigError            bad settings or a missing part; the command exits 2
├── Refused                the command cannot do what was asked; it exits 1
├── SchemaError            the database's schema and this version do not fit; exits 2
├── ChildDied              a process that `authz up` started has ended
└── BackendError           we could not decide: 503
    ├── StoreUnavailable       PostgreSQL
    └── CacheUnavailable       Redis; caught in lookup.py, never reaches the edge

No message contains what a client sent.
"""

from __future__ import annotations


class AuthzError(Exception):
    """The root of this project's errors."""


class ConfigError(AuthzError):
    """A setting is wrong or a needed part is missing; the text names it."""


class Refused(AuthzError):
    """What a command was asked for cannot be done; the text says why."""


class SchemaError(AuthzError):
    """The schema of the database is too old or too new for this version."""


class ChildDied(AuthzError):
    """A child process ended by itself; the text has its status and last lines."""


class BackendError(AuthzError):
    """A store did not answer, so that nothing can be decided."""


class StoreUnavailable(BackendError):
    """PostgreSQL did not answer in time or refused."""


class CacheUnavailable(BackendError):
    """Redis did not answer in time or refused."""
