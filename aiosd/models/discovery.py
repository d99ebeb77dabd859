"""What serves when nothing is configured: the Ollama of this machine, if one answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import anyio

from aiosd import addresses, config
from aiosd.config import TIERS
from aiosd.models.backend import BackendFailed
from aiosd.models.endpoint import Endpoint
from aiosd.models.ollama import Model, Ollama, Server
from aiosd.models.router import PULL, Standing
from aiosd.records import Tier

DUE_S = 15.0
"""How long a look holds. An Ollama that was started meanwhile is found after it, at the next request."""
LOOK_S = 5.0
"""For the list of models; an older server is asked about each of them."""
NAME = "ollama"
"""The place of the backends that are not there."""


class Discovery:
    """The models of an Ollama at OLLAMA_HOST or its usual address, looked up when a request needs them.

    Raises ConfigError for an OLLAMA_HOST that is no address.
    """

    def __init__(self, environ: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._url = addresses.ollama(environ.get("OLLAMA_HOST", ""))
        self._server = Server(Endpoint(NAME, self._backend(""), self._url, environ))
        self._clock = clock
        self._looked_at = -math.inf
        self._looking = anyio.Lock()
        self._known: dict[str, Ollama] = {}
        self._absent = ""
        self.found: dict[str, tuple[Ollama, dict[Tier, int]]] = {}
        """By name, each with its ranks; what only makes vectors has none."""

    @property
    def missing(self) -> Standing | None:
        """Where nothing was found: the backend that could be there, and what to do for it."""
        if any(ranks for _, ranks in self.found.values()):
            return None
        ranks: dict[Tier, int] = dict.fromkeys(TIERS, 0)
        local = self._backend("").is_local
        return Standing(name=NAME, kind="ollama", model="", local=local, ranks=ranks, down=self._absent)

    @property
    def url(self) -> str:
        return self._url

    async def look(self) -> None:
        """What is there now, if the last look is not due yet."""
        async with self._looking:
            if self._clock() - self._looked_at < DUE_S:
                return
            models, self._absent = await self._models()
            self._looked_at = self._clock()
            for model in models:
                if model.name not in self._known:
                    self._known[model.name] = Ollama(model.name, self._backend(model.name), self._server)
                self._known[model.name].takes_tools = "tools" in model.capabilities
                self._known[model.name].embeds = "embedding" in model.capabilities
            chat = [m for m in models if "completion" in m.capabilities]
            places = dict(zip((m.name for m in chat), ranks(chat), strict=True))
            self.found = {m.name: (self._known[m.name], places.get(m.name, {})) for m in models}

    def forget(self) -> None:
        """One of them failed: look again at the next request."""
        self._looked_at = -math.inf

    async def aclose(self) -> None:
        await self._server.aclose()

    async def _models(self) -> tuple[list[Model], str]:
        """The models, or none and why."""
        # Without an Ollama its package is never imported.
        if not await self._server.endpoint.listens():
            return [], str(self._server.nobody())
        try:
            await self._server.ready()
            with anyio.fail_after(LOOK_S):
                models = await self._server.models()
        except BackendFailed as exc:
            return [], str(exc)
        except TimeoutError:
            return [], f"{self._url} did not answer within {LOOK_S:.0f} s"
        return models, f"the Ollama at {self._url} has no chat model; get one with: {PULL}"

    def _backend(self, model: str) -> config.Backend:
        return config.Backend(kind="ollama", url=self._url, model=model)


def ranks(models: list[Model]) -> list[dict[Tier, int]]:
    """The places of models, the smallest first, in the tiers: the smallest leads `fast`, the middle one
    `balanced`, the largest `capable`. A tier's further models are the larger ones: it never gets less."""
    first: dict[Tier, int] = {"fast": 0, "balanced": len(models) // 2, "capable": len(models) - 1}
    return [{tier: i - lead for tier, lead in first.items() if i >= lead} for i in range(len(models))]
