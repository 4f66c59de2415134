"""Time in Redis that tests move: the script of limits goes by nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from authz.adapters.redis_limits import SCRIPT

if TYPE_CHECKING:
    from datetime import datetime

    from redis.asyncio import Redis


@dataclass(frozen=True, slots=True)
class RedisTime:
    """A clock in Redis, and the script of limits that reads it."""

    redis: Redis
    name: str = field(default_factory=lambda: f"clock:{uuid4()}")

    @property
    def script(self) -> str:
        """The script, by this clock."""
        reading = f"redis.call('HMGET', '{self.name}', 's', 'us')"
        script = SCRIPT.replace("redis.call('TIME')", reading)
        assert script != SCRIPT
        return script

    async def set(self, moment: datetime) -> None:
        """Say what time it is."""
        seconds, micros = int(moment.timestamp()), moment.microsecond
        await self.redis.hset(self.name, mapping={"s": seconds, "us": micros})
