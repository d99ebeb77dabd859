"""aiosctl model: which backends there are, and whether they answer."""

from __future__ import annotations

from typing import Annotated

import typer

from aiosctl import render
from aiosctl.verb import Verb, answer, connect, noun
from aiosd.protocol import Backends, ModelList

app = noun("Models: the backends that answer.")


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
        render.table(
            ["name", "state", "model", "where", "tiers", "slots", "usd in/out", "reason"],
            [
                (
                    each.name,
                    each.state,
                    each.model,
                    "local" if each.local else "remote",
                    " ".join(each.tiers),
                    f"{each.in_flight}/{each.slots}",
                    f"{each.price_in:g}/{each.price_out:g}",
                    each.reason,
                )
                for each in found.backends
            ],
        )

    with connect(ctx) as client:
        answer(ctx, client, ModelList(), text)
