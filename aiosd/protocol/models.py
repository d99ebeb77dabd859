"""The backends, for callers without an agent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from aiosd.protocol.base import Params, Positive
from aiosd.records import (
    BackendInfo,
    Decision,
    Embedded,
    Message,
    Priority,
    Privacy,
    Record,
    Reply,
    TaskType,
    Tier,
    ToolSpec,
)

MODEL_TEXT = "model.text"
"""The notification that carries a piece of the text that a streamed `model.infer` writes: `{text}`."""
MODEL_PROGRESS = "model.progress"
"""The notification of what a `model.infer` waits for: a Progress."""


class Progress(Record, frozen=True, kw_only=True):
    stage: Literal["queued", "loading", "retrying"]
    detail: str
    place: int | None = None
    """In the queue, from 1."""
    eta_s: float | None = None
    """How long it is predicted to take still."""


class Backends(Record, frozen=True, kw_only=True):
    backends: tuple[BackendInfo, ...]


class ModelList(Params[Backends], frozen=True, kw_only=True):
    """The backends as they stand now; each is probed."""

    method = "model.list"
    returns = Backends


class ModelAsked(msgspec.Struct, frozen=True, kw_only=True):
    """What `model.route` and `model.infer` are asked."""

    messages: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)]
    tier: Tier = "balanced"
    task_type: TaskType = "reasoning"
    max_tokens: Positive = 2000
    latency_budget_ms: Positive | None = None
    """Steers the choice; no deadline."""
    tools: tuple[ToolSpec, ...] = ()
    schema: dict[str, Any] | None = None
    privacy: Privacy = "any"
    priority: Priority = "normal"
    backend: str | None = None


class ModelRoute(ModelAsked, Params[Decision], frozen=True, kw_only=True):
    """Which backend would be asked now and why; no model is sent anything."""

    method = "model.route"
    returns = Decision


class ModelInfer(ModelAsked, Params[Reply], frozen=True, kw_only=True):
    """One reply of a model, without a session: nothing is remembered. What it costs counts against the day's
    cap. With `stream` its text comes before as `model.text {text}` notifications, with `progress` what it waits for
    as `model.progress {stage, detail, place, eta_s}`: ask for one at a time."""

    stream: bool = False
    progress: bool = False

    method = "model.infer"
    returns = Reply


class ModelEmbed(Params[Embedded], frozen=True, kw_only=True):
    """Texts as vectors, made on this machine or not at all."""

    texts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]

    method = "model.embed"
    returns = Embedded
