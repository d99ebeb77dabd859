"""What agents act with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import msgspec

from aiosd import config
from aiosd.events import Broker
from aiosd.memory.memory import Memories
from aiosd.models.pool import Pool
from aiosd.records import Tool
from aiosd.state import tasks
from aiosd.state.database import Database
from aiosd.tasks.approval import Approvals
from aiosd.tasks.budget import Budget
from aiosd.tasks.consolidation import Consolidation
from aiosd.tools.registry import Registry


class Hands(msgspec.Struct):
    """What an agent acts with; opened in daemon.py. A reload of the config replaces the pool and the agents."""

    database: Database
    broker: Broker
    memory: Memories
    registry: Registry
    pool: Pool
    budget: Budget
    approvals: Approvals
    agents: Mapping[str, config.Agent]
    """By name."""
    consolidation: Consolidation
    _told: set[str] = msgspec.field(default_factory=set)
    """Digests of those that the ledger has."""

    async def told(self, tools: Sequence[Tool]) -> str:
        """The digest under which the ledger has what a model is told of these."""
        text = msgspec.json.encode(tools)
        digest = blake2b(text, digest_size=16).hexdigest()
        if digest not in self._told:
            await self.database.write(lambda c: tasks.keep_toolset(c, digest, text))
            self._told.add(digest)
        return digest
