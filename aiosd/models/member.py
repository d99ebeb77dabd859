"""A backend in the pool, with what the pool knows of it: how it stands, what it takes, whether its model is loaded."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping

import anyio
import msgspec

from aiosd.config import TIERS
from aiosd.models.backend import Backend, BackendFailed, Done, ModelRequest, Spare
from aiosd.models.breaker import STALLED_S, Breaker, patience_s
from aiosd.models.estimator import Learnt, Observed, Prediction, assumed, learn, learn_load, predict
from aiosd.models.router import NOW, QUOTING, Standing, way_up
from aiosd.models.window import PER_MESSAGE, Window
from aiosd.records import BackendInfo, Candidate, Tier, Tokens

LOAD_S = 300.0
"""For loading a model."""
KNOWN_S = 60.0
"""How long it is taken for granted that a model which answered is still loaded, or that one that was not is not."""
LOOK_S = 1.0
"""For a backend to say whether its model is loaded."""
LOADED_S = 1.0
"""A load of less was none: servers report some milliseconds for a model that is there."""
KEPT_S = 300.0
"""After this long without a request a server may have dropped its model (Ollama's default)."""


class Patience(msgspec.Struct, frozen=True):
    """How long a backend has for its first token, from the moment that it has the request."""

    limit_s: float
    of_budget: bool = False
    """It is the request's own budget: no reason to think worse of the backend."""


class Overdue(BackendFailed):
    """No first token came in time, while somebody else could be asked."""

    def __init__(self, patience: Patience) -> None:
        limit_s = patience.limit_s
        limit = f"{limit_s:g} s" if limit_s >= 1 else f"{limit_s * 1000:.0f} ms"
        if patience.of_budget:
            super().__init__(f"no word from it within {limit}", fault="request")
        else:
            super().__init__(f"no word from it within {limit}", retry_after_s=STALLED_S)


class Load(msgspec.Struct, frozen=True):
    """A model that is being loaded."""

    began_s: float
    about_s: float
    """How long it is predicted to take."""

    def left_s(self, now: float) -> float:
        return max(0.0, self.began_s + self.about_s - now)


class Size(msgspec.Struct, frozen=True):
    """A request, as far as it takes time and room."""

    prompt_chars: int
    least_chars: int
    """Without the session's turns and what was recalled, which a small window may do without."""
    request: ModelRequest


def size(request: ModelRequest) -> Size:
    chars = spare = 0
    for message in request.messages:
        chars += len(message.content) + PER_MESSAGE
        if isinstance(message, Spare) and message.kind in ("turn", "memory"):
            spare += len(message.content) - len(message.head)
    if request.tools:
        chars += len(msgspec.json.encode(request.tools))
    return Size(chars, chars - spare, request)


class Member:
    """`ranks` is its place in each tier that it serves. Its name is the config's, whatever it calls itself."""

    def __init__(
        self, name: str, backend: Backend, ranks: Mapping[Tier, int], learnt: Learnt | None = None
    ) -> None:
        self.name = name
        self.backend = backend
        self.ranks = ranks
        self.breaker = Breaker()
        self.learnt = learnt or assumed(local=backend.local)
        self.load: Load | None = None
        self.loaded_s = -math.inf
        """When it was loaded by us."""
        self._resident: bool | None = None
        self._known_s = -math.inf
        self._answered_s = -math.inf

    # --- time

    def predicted(self, now: float, asked: Size, wait_s: float) -> Prediction:
        if self.load is not None:
            load_s = self.load.left_s(now)
        else:
            load_s = self.learnt.load_s if self._resident is False else 0.0
        learnt, request = self.learnt, asked.request
        return predict(
            learnt,
            wait_s=wait_s,
            load_s=load_s,
            prompt_tokens=asked.prompt_chars / learnt.chars_per_token,
            max_tokens=request.max_tokens,
            task_type=request.task_type,
        )

    def standing(self, now: float, asked: Size, wait_s: float, tried: str | None) -> Standing:
        """`tried` is how it failed this very request."""
        backend, learnt = self.backend, self.learnt
        quotes = backend.kind == QUOTING
        predicted = NOW if quotes else self.predicted(now, asked, wait_s)
        window: Window | None = getattr(backend, "window", None)
        room_ = None if window is None else window.room(asked.request.max_tokens)
        cost_usd = 0.0
        if self.paid:
            prompt_tokens = asked.prompt_chars / learnt.chars_per_token
            output_tokens = predicted.output_s / learnt.output_token_s
            cost_usd = (backend.price_in * prompt_tokens + backend.price_out * output_tokens) / 1e6
        return Standing(
            name=self.name,
            kind=backend.kind,
            model=backend.model,
            local=backend.local,
            ranks=self.ranks,
            price_in=backend.price_in,
            price_out=backend.price_out,
            holds=room_ is None or asked.least_chars <= room_ * learnt.chars_per_token,
            takes_tools=getattr(backend, "takes_tools", True),
            down=tried if tried is not None else self.breaker.down(now),
            tried=tried is not None,
            predicted=predicted,
            cost_usd=cost_usd,
        )

    def patience(self, now: float, predicted: Prediction, request: ModelRequest) -> Patience:
        """While another model could be asked. A load that nobody told us of is not held against it."""
        if self.backend.local and self._resident is None and now - self._answered_s > KEPT_S:
            return Patience(LOAD_S)
        calls, overdue = self.learnt.calls, self.breaker.overdue
        return Patience(patience_s(predicted, calls=calls, overdue=overdue, whole=bool(request.tools)))

    def answered(self, seen: Observed, done: Done, now: float) -> None:
        """Learns from an answer that came whole."""
        self.breaker.answered()
        self._answered_s = now
        if self._resident is not None:
            self._resident, self._known_s = True, now
        if done.load_s is not None and done.load_s > LOADED_S:
            learn_load(self.learnt, done.load_s)
        if self.backend.kind != QUOTING:
            learn(self.learnt, seen)

    def failed(self, exc: BackendFailed, now: float) -> None:
        """It is left alone for as long as the failure says; a later choice asks it again when that is over."""
        self._known_s = -math.inf
        if isinstance(exc, Overdue) and exc.fault == "backend":
            self.breaker.overdue += 1
        if exc.fault == "backend" or exc.retry_after_s is not None:
            self.breaker.failed(str(exc), exc.retry_after_s, now, busy=exc.busy)

    # --- the model in memory

    @property
    def cold(self) -> bool:
        return self._resident is False

    def due(self, now: float) -> bool:
        """Whether it must be asked again whether its model is loaded."""
        return hasattr(self.backend, "resident") and now - self._known_s > KNOWN_S and self.load is None

    async def look(self, now: float) -> None:
        """Asks it; what cannot say is taken to be loaded."""
        said: bool | None = None
        with contextlib.suppress(BackendFailed):
            if (ready := getattr(self.backend, "ready", None)) is not None:
                await ready()  # an import, which the request waits for in any case
        with anyio.move_on_after(LOOK_S):
            try:
                answer = self.backend.resident()  # type: ignore[attr-defined]  # not every kind can know
                said = await answer if inspect.isawaitable(answer) else answer
            except BackendFailed:
                pass  # the request itself will tell
        self._resident, self._known_s = said, now

    def loaded(self, now: float) -> None:
        assert self.load is not None
        learn_load(self.learnt, now - self.load.began_s)
        self._resident, self._known_s, self.loaded_s = True, now, now

    # --- money and words

    @property
    def paid(self) -> bool:
        return self.backend.price_in > 0 or self.backend.price_out > 0

    def cost_usd(self, usage: Tokens) -> float:
        prices = self.backend.price_in * usage.input_tokens + self.backend.price_out * usage.output_tokens
        return prices / 1e6

    def candidate(self, rejected: str) -> Candidate:
        backend = self.backend
        return Candidate(backend=self.name, model=backend.model, local=backend.local, rejected=rejected)

    def info(self, reason: str | None, now: float, *, in_flight: int, queued: int) -> BackendInfo:
        """`reason` is why it is down, None while it is up."""
        backend, learnt = self.backend, self.learnt
        retry_in_s = self.breaker.retry_in_s(now)
        return BackendInfo(
            name=self.name,
            kind=backend.kind,
            model=backend.model,
            url=backend.url,
            local=backend.local,
            tiers=tuple(tier for tier in TIERS if tier in self.ranks),
            state="up" if reason is None else "down",
            reason=reason,
            hint=way_up(reason) if reason is not None else None,
            slots=backend.slots,
            in_flight=in_flight,
            price_in=backend.price_in,
            price_out=backend.price_out,
            resident=self._resident,
            queued=queued,
            tokens_per_s=1 / learnt.output_token_s if learnt.calls else None,
            first_token_s=learnt.first_s if learnt.calls else None,
            retry_in_s=retry_in_s if retry_in_s is not None and math.isfinite(retry_in_s) else None,
        )
