"""aiosctl agent: the named ways of working of the config."""

from __future__ import annotations

from typing import Annotated

import typer

from aiosctl import render
from aiosctl.verb import Verb, answer, connect, noun
from aiosd.protocol.tools import AgentList, Agents

app = noun("Agents: named ways of working, from the config.")


@app.command("list", cls=Verb)
def agent_list(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Names alone.")] = False,
) -> None:
    """List agents.

    \b
    aiosctl agent list
    """

    def text(found: Agents) -> None:
        if quiet:
            render.ids(each.name for each in found.agents)
            return
        render.table(
            ["name", "tier", "permissions", "system"],
            [
                (
                    each.name,
                    each.tier,
                    None if each.permissions is None else " ".join(each.permissions),
                    each.system,
                )
                for each in found.agents
            ],
        )

    with connect(ctx) as client:
        answer(ctx, client, AgentList(), text)
