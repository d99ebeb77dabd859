"""aiosctl budget: what may be spent, and what was."""

from __future__ import annotations

from typing import Annotated

import typer

from aiosctl import render, resolve
from aiosctl.verb import Verb, answer, connect, noun
from aiosd.errors import InvalidParams
from aiosd.protocol.budget import BudgetGet, BudgetSet, Limits

app = noun("Budget: what models may cost, and what they did.")

SessionOption = Annotated[str | None, typer.Option("--session", "-s", metavar="ID", help="Of this session.")]


@app.command("show", cls=Verb)
def budget_show(ctx: typer.Context, session: SessionOption = None) -> None:
    """Show the caps, what was spent of them, and what is left.

    \b
    aiosctl budget show
    aiosctl budget show -s @last
    """
    with connect(ctx) as client:
        session_id = None if session is None else resolve.session(client, session)
        answer(ctx, client, BudgetGet(session_id=session_id), _shown)


@app.command("set", cls=Verb)
def budget_set(
    ctx: typer.Context,
    usd: Annotated[
        str, typer.Argument(metavar="USD", help="Dollars, `none`, or `config` for what config.toml says.")
    ],
    session: SessionOption = None,
) -> None:
    """Change the most that a day may cost (UTC), or a session. It holds from the next request on, also after a restart.

    \b
    aiosctl budget set 2.00
    aiosctl budget set --session notes 0.50
    """
    with connect(ctx) as client:
        if session is None:
            changed = BudgetSet(day_usd="config" if usd == "config" else _dollars(usd))
        else:
            changed = BudgetSet(session_id=resolve.session(client, session), max_usd=_dollars(usd))
        answer(ctx, client, changed, _shown)


def _dollars(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text.removeprefix("$"))
    except ValueError:
        raise InvalidParams(
            f"expected dollars or none, got `{text}`", hint="aiosctl budget set 2.00"
        ) from None


def _shown(found: Limits) -> None:
    render.table(
        ["cap of the", "usd", "spent", "held", "left"],
        [
            (each.scope, _usd(each.cap_usd), _usd(each.spent_usd), _usd(each.held_usd), _usd(each.left_usd))
            for each in found.limits
        ],
    )


def _usd(amount: float | None) -> str | None:
    return None if amount is None else f"{amount:.4f}"
