"""A new config in force without a restart: what the daemon can replace while it works, and the news of the rest."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus

from aiosd import config as configs
from aiosd.config import Config
from aiosd.models.pool import Pool
from aiosd.protocol.system import Reloaded

logger = logging.getLogger(__name__)

LIVE = ("agents", "budget", "default_permissions", "mcp", "models")
"""Sections that are read again. The others belong to processes that were started with them."""

RETIRE_S = 600.0
"""Seconds that replies on their way from a backend no longer in the config have to end."""

Pools = Callable[[Config], AbstractAsyncContextManager[Pool]]
Apply = Callable[[Config, Pool], None]


class Reload:
    """Made by open_reload; called, it reads the config again."""

    def __init__(self, path: Path, config: Config, pools: Pools, apply: Apply, tasks: TaskGroup) -> None:
        self._path = path
        self.config = config
        """In force."""
        self._pools = pools
        self._apply = apply
        self._tasks = tasks
        self._lock = anyio.Lock()
        self._retire = anyio.Event()
        self.pool: Pool

    async def __call__(self) -> Reloaded:
        """What differs from the config in force. Raises ConfigError, and then nothing has changed."""
        async with self._lock:
            new = configs.load(self._path)
            keys = configs.changed(self.config, new)
            live = tuple(key for key in keys if key.split(".")[0] in LIVE)
            if any(key.startswith("models.") for key in live):
                await self.pool.save()  # the next one begins with what this one has learnt
                self.pool = await self._open(new)
            self.config = new
            self._apply(new, self.pool)
            restart = tuple(key for key in keys if key not in live)
            logger.info("config read again", extra={"changed": live, "restart": restart})
            return Reloaded(changed=live, restart=restart)

    async def _open(self, config: Config) -> Pool:
        """The pool of this config. The one before it closes once nobody waits for a reply of its."""
        retire = anyio.Event()
        pool: Pool = await self._tasks.start(self._keep, config, retire)
        self._retire.set()
        self._retire = retire
        return pool

    async def _keep(
        self,
        config: Config,
        retire: anyio.Event,
        *,
        task_status: TaskStatus[Pool] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        async with self._pools(config) as pool:
            task_status.started(pool)
            await retire.wait()
            with anyio.move_on_after(RETIRE_S):
                await pool.idle()


@asynccontextmanager
async def open_reload(path: Path, config: Config, pools: Pools, apply: Apply) -> AsyncIterator[Reload]:
    """Opens the first pool, and closes whichever there is in the end. `apply` is given each config after it."""
    async with anyio.create_task_group() as tasks:
        reload = Reload(path, config, pools, apply, tasks)
        reload.pool = await reload._open(config)
        try:
            yield reload
        finally:
            tasks.cancel_scope.cancel()
