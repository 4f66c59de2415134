"""The whole gateway on one machine, for `authz up` and for the tests.

Everything that is started here is stopped here, in the opposite order.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import socket
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from authz.adapters import postgres_schema
from authz.adapters.postgres import connected
from authz.errors import ConfigError
from authz.local.envoy import Places, envoy_command
from authz.local.postgres import embedded_postgres
from authz.local.process import running
from authz.local.redis import embedded_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from authz.local.envoy import Address
    from authz.local.process import Child
