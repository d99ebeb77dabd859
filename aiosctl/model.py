"""aiosctl model: which backends there are, which one would answer and why, and asking one without a session."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from aiosctl import inputs, pull, render, setup
from aiosctl.answer import ABSTAINED, next_step, not_chosen
from aiosctl.client import typed
from aiosctl.options import Backend, Files, seconds
from aiosctl.run import read_schema
from aiosctl.verb import Verb, answer, connect, globals_of, noun
from aiosd.protocol.models import (
    MODEL_PROGRESS,
    MODEL_TEXT,
    Backends,
    ModelInfer,
    ModelList,
    ModelRoute,
    Progress,
)
from aiosd.records import BackendInfo, Decision, Message, Privacy, Reply, Tier

app = noun("Models: the backends that answer.")
app.command("setup", cls=Verb)(setup.setup)
app.command("pull", cls=Verb)(pull.pull)
app.command("key", cls=Verb)(setup.key)

INFER_S = 900.0
"""Seconds for a reply; loading a large model comes before it."""

TierOption = Annotated[Tier, typer.Option(help="How able a model is asked.")]
PrivateOption = Annotated[bool, typer.Option("--private", help="On this machine or not at all.")]
LatencyOption = Annotated[
    float | None,
    typer.Option("--latency", parser=seconds, metavar="TIME", help="Time it should be done in: 2s, 500ms."),
]
TokensOption = Annotated[int, typer.Option(min=1, metavar="N", help="Most tokens of the reply.")]
TextArgument = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="What is asked. Without it: standard input.")
]


@app.command("list", cls=Verb)
def model_list(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Names alone.")] = False,
) -> None:
    """List model backends as they stand now.

    \b
    aiosctl model list
    """

    def text(found: Backends) -> None:
        if quiet:
            render.ids(each.name for each in found.backends)
            return
        render.table(COLUMNS, map(row, found.backends))

    with connect(ctx) as client:
        answer(ctx, client, ModelList(), text)


COLUMNS = (
    *("name", "state", "tier", "model", "resident", "queue", "in flight"),
    *("tokens/s", "first token", "usd in/out", "retry", "reason"),
)


def row(each: BackendInfo) -> tuple[render.Cell, ...]:
    """A backend under COLUMNS."""
    paid = each.price_in > 0 or each.price_out > 0
    return (
        each.name,
        each.state,
        "all" if len(each.tiers) == 3 else " ".join(each.tiers) or None,
        (each.model + ("" if each.local else " (remote)")) or None,
        each.resident,
        each.queued,
        f"{each.in_flight}/{each.slots}",
        None if each.tokens_per_s is None else f"{each.tokens_per_s:.1f}",
        None if each.first_token_s is None else f"{each.first_token_s:.2f} s",
        f"{each.price_in:g}/{each.price_out:g}" if paid else None,
        None if each.retry_in_s is None else f"{each.retry_in_s:.0f} s",
        each.reason,
    )


@app.command("route", cls=Verb)
def model_route(
    ctx: typer.Context,
    text: TextArgument = None,
    file: Files = None,
    tier: TierOption = "balanced",
    backend: Backend = None,
    private: PrivateOption = False,
    latency: LatencyOption = None,
    max_tokens: TokensOption = 2000,
) -> None:
    """Say which backend would answer now, and why. No model is sent anything.

    \b
    aiosctl model route "summarize this" -f README.md
    aiosctl model route --tier capable --latency 5s "prove it"
    """
    params = ModelRoute(
        messages=messages(text, file or []),
        tier=tier,
        backend=backend,
        privacy=_privacy(private),
        latency_budget_ms=_milliseconds(latency),
        max_tokens=max_tokens,
    )
    with connect(ctx) as client:
        answer(ctx, client, params, explain)


def explain(decision: Decision) -> None:
    """A decision as one block."""
    chosen = next((c for c in decision.candidates if c.backend == decision.chosen), None)
    pairs: list[tuple[str, render.Cell]] = [("backend", decision.chosen)]
    if chosen is not None:
        pairs += [("model", chosen.model), ("where", "this machine" if chosen.local else "remote")]
    pairs += [("tier", decision.tier), ("because", decision.reason)]
    if chosen is not None and chosen.predicted_s is not None:
        pairs.append(("takes", f"about {chosen.predicted_s:.1f} s"))
    pairs += [(f"not {c.backend}", not_chosen(c)) for c in decision.candidates if c.rejected]
    render.fields(pairs)


@app.command("infer", cls=Verb)
def model_infer(
    ctx: typer.Context,
    text: TextArgument = None,
    file: Files = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="Instructions before it.")] = None,
    tier: TierOption = "balanced",
    backend: Backend = None,
    private: PrivateOption = False,
    latency: LatencyOption = None,
    max_tokens: TokensOption = 2000,
    schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSON Schema that the reply is to fit.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The reply and errors alone.")] = False,
) -> None:
    """Ask a model once: no session, no tools, nothing remembered.

    \b
    aiosctl model infer "a haiku about pipes"
    git diff | aiosctl model infer --tier fast "a commit message for this"

    Exits with 78 when no model answers.
    """
    json = globals_of(ctx).json
    live = render.for_people() and not json
    params = ModelInfer(
        messages=messages(text, file or [], system),
        tier=tier,
        backend=backend,
        privacy=_privacy(private),
        latency_budget_ms=_milliseconds(latency),
        max_tokens=max_tokens,
        schema=read_schema(schema) if schema else None,
        priority="interactive" if live else "normal",
        stream=live,
        progress=not quiet and not json,
    )
    written = ""

    def on_notification(method: str, raw: msgspec.Raw) -> None:
        nonlocal written
        if method == MODEL_TEXT:
            piece = msgspec.json.decode(raw, type=dict[str, str]).get("text", "")
            render.out(piece, end="")
            sys.stdout.flush()
            written += piece
        elif method == MODEL_PROGRESS:
            _tell(msgspec.json.decode(raw, type=Progress))

    with connect(ctx) as client:
        try:
            raw = client.ask(params, timeout_s=INFER_S, on_notification=on_notification)
        finally:
            if written:
                render.out("")
    reply: Reply = typed(raw, Reply, params.method)
    if json:
        render.document(raw)
    elif reply.text and not written:
        render.out(reply.text)
    if reply.abstained:
        render.complaint("no answer: no model was there", next_step(reply.decision))
        raise typer.Exit(ABSTAINED)
    if not quiet and not json:
        notes(reply)


def _tell(progress: Progress) -> None:
    """A load in any case; what passes by itself only to somebody who watches."""
    if progress.stage == "loading" or render.on_terminal(sys.stderr):
        eta = (
            ""
            if progress.stage == "loading" or progress.eta_s is None
            else f" (about {progress.eta_s:.0f} s)"
        )
        render.aside(progress.detail + eta)


def notes(reply: Reply) -> None:
    if reply.stop_reason == "max_tokens":
        render.notice("the reply stops early: max_tokens")
    for said in (reply.decision.dropped, reply.decision.truncated):
        if said:
            render.notice(said)
    if reply.cost_usd:
        render.aside(f"{reply.backend}: ${reply.cost_usd:.4f}, {reply.decision.reason}")


def messages(text: str | None, files: list[str], system: str | None = None) -> tuple[Message, ...]:
    """What a model is sent: instructions, then what was given, then what is asked."""
    words, given = inputs.task_and_inputs(text, files)
    found = [] if system is None else [Message(role="system", content=system)]
    if given:
        parts = [f'<input name="{each.name}">\n{each.text}\n</input>' for each in given]
        found.append(Message(role="user", content="\n".join(parts)))
    return (*found, Message(role="user", content=words))


def _privacy(private: bool) -> Privacy:
    return "local" if private else "any"


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, round(seconds * 1000))
