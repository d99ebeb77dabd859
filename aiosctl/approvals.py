"""aiosctl approvals: calls that wait for a word, and what was answered once and for all."""

from __future__ import annotations

from typing import Annotated

import typer

from aiosctl import render, resolve
from aiosctl.asking import WORDS, shown
from aiosctl.client import Client
from aiosctl.verb import Verb, answer, connect, noun
from aiosd.errors import InvalidParams, InvalidState, NotFound
from aiosd.protocol.approvals import ApprovalList, ApprovalRevoke, ApprovalsFound, TaskApprove
from aiosd.protocol.tasks import TaskGet
from aiosd.records import AlwaysRule, Task

app = noun("Approvals: calls that wait for your word, and your standing answers.")


@app.command("list", cls=Verb)
def approvals_list(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Ids of the rules alone.")] = False,
) -> None:
    """List the calls that wait, and the rules that `always` and `never` have made.

    \b
    aiosctl approvals list
    """

    with connect(ctx) as client:

        def text(found: ApprovalsFound) -> None:
            if quiet:
                render.ids(each.rule_id for each in found.rules)
                return
            tasks = {each.task_id: client.call(TaskGet(task_id=each.task_id)) for each in found.waiting}
            waiting: list[tuple[render.Cell, ...]] = [
                ("waits", f"task {tasks[each.task_id].number}", shown(each), each.at)
                for each in found.waiting
            ]
            ids = render.short([each.rule_id for each in found.rules])
            rules: list[tuple[render.Cell, ...]] = [
                (
                    "never" if each.rule.startswith("!") else "always",
                    id,
                    each.rule.removeprefix("!"),
                    each.created_at,
                )
                for id, each in zip(ids, found.rules, strict=True)
            ]
            render.table(["answer", "id", "what", "since"], waiting + rules)

        answer(ctx, client, ApprovalList(), text)


@app.command("answer", cls=Verb)
def approvals_answer(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="TASK", help="The task that waits.")],
    word: Annotated[str, typer.Argument(metavar="y|n|always|never", help="The answer.")],
    call_id: Annotated[
        str | None,
        typer.Option("--call", metavar="ID", help="This call; without it, all that wait in the task."),
    ] = None,
) -> None:
    """Answer what a task waits for, from any terminal.

    \b
    aiosctl approvals answer @last y
    """
    decision = WORDS.get(word.lower())
    if decision is None:
        raise InvalidParams(f"`{word}` is no answer: y, n, always or never")

    def text(task: Task) -> None:
        render.out(f"task {task.number} {task.state}")

    with connect(ctx) as client:
        task_id = resolve.task(client, id)
        waiting = [each.call_id for each in client.call(ApprovalList()).waiting if each.task_id == task_id]
        calls = [call for call in waiting if call_id in (None, call)]
        if not calls:
            raise InvalidState("nothing of that task waits for approval", hint="aiosctl approvals list")
        for call in calls[:-1]:
            client.call(TaskApprove(task_id=task_id, call_id=call, decision=decision))
        answer(ctx, client, TaskApprove(task_id=task_id, call_id=calls[-1], decision=decision), text)


@app.command("revoke", cls=Verb)
def approvals_revoke(
    ctx: typer.Context,
    rule_id: Annotated[str, typer.Argument(metavar="ID", help="A rule's id or a beginning of it.")],
) -> None:
    """Forget a standing answer: what it settled asks again.

    \b
    aiosctl approvals revoke 3f2
    """

    def text(rule: AlwaysRule) -> None:
        render.out(f"revoked {rule.rule}")

    with connect(ctx) as client:
        answer(ctx, client, ApprovalRevoke(rule_id=_rule(client, rule_id)), text)


def _rule(client: Client, given: str) -> str:
    rules = client.call(ApprovalList()).rules
    found = [each.rule_id for each in rules if given and each.rule_id.startswith(given.lower())]
    if len(found) != 1:
        how = "is more than one" if found else "is no rule"
        raise NotFound(f"`{given}` {how}", hint="aiosctl approvals list")
    return found[0]
