"""A Redis Cluster of three masters, each of which can be lost and come back."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from authz.adapters.redis_cache import entry_name
from authz.local.process import running, wait_until_ready
from authz.local.redis import redis_binary
from authz.local.stack import free_port
from tests.failing import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from authz.local.process import Child

_SLOTS = 16384
_NODES = 3
_WITHIN_S = 20.0
_NODE_TIMEOUT_MS = 1000
_BUS = 10_000  # a node's other port is higher by that


@dataclass
class Node:
    """A master; ``slots`` are its own."""

    folder: Path
    port: int
    slots: range
    full_coverage: bool
    children: list[Child] = field(default_factory=list)
    run: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        """Run the server, with what it knew of the cluster before."""
        child = await self.run.enter_async_context(
            running("redis", self._command(), log=self.folder / "log", cwd=self.folder)
        )
        self.children.append(child)
        await wait_until_ready(child, self._answers, _WITHIN_S)

    async def kill(self) -> None:
        """End the server at once."""
        self.children[-1].process.kill()
        await self.run.aclose()

    async def ask(self, *words: object) -> Any:  # noqa: ANN401 # as Redis answers
        """Send a command to this node alone."""
        async with Redis(port=self.port, socket_timeout=1) as client:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call] # theirs

    async def names(self, pattern: str) -> list[bytes]:
        """Return the names of this node's entries that fit."""
        return list(await self.ask("KEYS", pattern))

    async def is_state(self, state: str) -> bool:
        """Tell whether this node sees the cluster in that state."""
        info: dict[str, str] = await self.ask("CLUSTER INFO")
        known = int(info["cluster_known_nodes"]) == _NODES
        return known and info["cluster_state"] == state

    async def sees_failed(self, other: Node) -> bool:
        """Tell whether this node takes another one for lost."""
        nodes: dict[str, dict[str, Any]] = await self.ask("CLUSTER NODES")
        flags = next(n["flags"] for at, n in nodes.items() if f":{other.port}" in at)
        return "fail" in flags.split(",")

    def holds(self, digest: bytes) -> bool:
        """Tell whether the record of a key has its place here."""
        return key_slot(entry_name(digest).encode()) in self.slots

    async def _answers(self) -> bool:
        try:
            return bool(await self.ask("PING"))
        except (RedisError, OSError):
            return False

    def _command(self) -> tuple[str, ...]:
        binary = redis_binary()
        assert binary is not None, "no Redis: neither in a wheel nor on PATH"
        return (
            binary,
            *("--bind", "127.0.0.1", "--port", str(self.port)),
            *("--save", "", "--appendonly", "no"),
            *("--cluster-enabled", "yes"),
            *("--cluster-node-timeout", str(_NODE_TIMEOUT_MS)),
            "--cluster-require-full-coverage",
            "yes" if self.full_coverage else "no",
        )


@asynccontextmanager
async def running_cluster(
    directory: Path, *, full_coverage: bool
) -> AsyncIterator[list[Node]]:
    """Run three masters that share all slots until the block ends."""
    bounds = [round(_SLOTS * n / _NODES) for n in range(_NODES + 1)]
    nodes = [
        Node(directory / f"node-{n}", _port(), range(*bounds[n : n + 2]), full_coverage)
        for n in range(_NODES)
    ]
    async with AsyncExitStack() as stack:
        for node in nodes:
            node.folder.mkdir(parents=True)
            stack.push_async_callback(node.run.aclose)
            await node.start()
            await node.ask("CLUSTER", "ADDSLOTS", *node.slots)
        for epoch, node in enumerate(nodes, 1):
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in nodes[1:]:
            await node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        for node in nodes:
            await until(partial(node.is_state, "ok"), _WITHIN_S)
        yield nodes


async def wait_until_noticed(lost: Node, nodes: list[Node], state: str) -> None:
    """Wait until the other nodes take one for lost, and the cluster for that."""

    async def is_noticed() -> bool:
        others = [node for node in nodes if node is not lost]
        seen = [await node.sees_failed(lost) for node in others]
        return all(seen) and all([await node.is_state(state) for node in others])

    await until(is_noticed, _WITHIN_S)


def cluster_url(nodes: list[Node]) -> str:
    """Return the URL that names every node."""
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def _port() -> int:
    while (port := free_port()) + _BUS > 65_535:
        pass
    return port
