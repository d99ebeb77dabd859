"""The backend with no weights: it quotes what it was given, makes calls that a request spells out, or abstains.

Every word of its answers is a source's, so `generated` is false. What finds the quotes is quoting.py, what
plans the calls is literal.py; both are pure.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncGenerator, Sequence

import anyio.to_thread

from aiosd.models.backend import Delta, Done, Message, ModelRequest, TextDelta, ToolCallDelta
from aiosd.models.extractive import literal, quoting, summary
from aiosd.records import Source, Tokens, ToolUse

INLINE = 20_000
"""Characters of passages that are read on the event loop, in some 10 ms; more goes to a thread."""

_SUMMARIZE = re.compile(
    r"\W*(?:please\s+|can you\s+|could you\s+)?"
    r"(?:summari[sz]e|give (?:me )?a (?:short |brief )?summary|tl;?dr)\b",
    re.IGNORECASE,
)


class Extractive:
    """The Backend that is always there. It holds nothing, so it takes any number of requests at once."""

    name = "extractive"
    kind = "extractive"
    model = "extractive"
    url: str | None = None
    local = True
    slots = 64
    price_in = 0.0
    price_out = 0.0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        """Quotes with their places, one a line; or one tool call; or nothing and `abstained`."""
        task = next((message.content for message in reversed(request.messages) if message.role == "user"), "")
        results = _results(request, task)
        if any(result.failed for result in results):
            yield _done(())
            return
        if results:
            yield TextDelta("\n".join(result.content for result in results))
            yield _done(
                tuple(Source(kind="tool", ref=result.name or "", text=result.content) for result in results)
            )
            return
        if request.schema is not None or not task.strip():
            yield _done(())
            return
        call = literal.plan(task, request.tools) if request.messages[-1].role == "user" else None
        if call is not None:
            yield ToolCallDelta(
                ToolUse(call_id=f"call_{len(request.messages)}", name=call.name, arguments=call.arguments)
            )
            yield Done(stop_reason="end_turn", usage=Tokens(), generated=False)
            return
        size = sum(len(passage.text) for passage in request.passages)
        if size <= INLINE:
            quotes = answer(task, request.passages, summarizing=request.task_type == "summarization")
        else:
            quotes = await anyio.to_thread.run_sync(
                lambda: answer(task, request.passages, summarizing=request.task_type == "summarization"),
                abandon_on_cancel=True,
            )
        for number, quote in enumerate(quotes):
            yield TextDelta(("\n" if number else "") + f"{place(quote)}: {quote.text}")
        yield _done(
            tuple(Source(kind=quote.passage.kind, ref=_ref(quote), text=quote.text) for quote in quotes)
        )

    async def probe(self) -> str | None:
        return None

    async def aclose(self) -> None:
        return None


def answer(task: str, passages: Sequence[Source], *, summarizing: bool) -> tuple[quoting.Quote, ...]:
    """The quotes to answer with; () is an abstention."""
    if summarizing or _SUMMARIZE.match(task):
        given = [passage for passage in passages if passage.kind != "memory"]
        return summary.summarize(given or passages)
    return quoting.best(task, passages)


def place(quote: quoting.Quote) -> str:
    """How a line of the answer names its source: `README.md:42`, `memory 1f0c9a3e`."""
    return f"memory {quote.passage.ref[:8]}" if quote.passage.kind == "memory" else _ref(quote)


def _ref(quote: quoting.Quote) -> str:
    return quote.passage.ref if quote.passage.kind == "memory" else f"{quote.passage.ref}:{quote.line}"


def _results(request: ModelRequest, task: str) -> tuple[Message, ...]:
    """What our own call gave, where the conversation ends in it: that is the answer, as it is.

    A call that another model made is no answer yet. Ours is known by planning it again: the task decides it.
    """
    results = tuple(itertools.takewhile(lambda message: message.role == "tool", reversed(request.messages)))
    asked = next(
        (message.tool_calls for message in reversed(request.messages) if message.role == "assistant"), ()
    )
    planned = literal.plan(task, request.tools)
    ours = planned is None if not request.tools else [(use.name, use.arguments) for use in asked] == [planned]
    return results[::-1] if ours else ()


def _done(sources: tuple[Source, ...]) -> Done:
    return Done(
        stop_reason="end_turn", usage=Tokens(), generated=False, abstained=not sources, sources=sources
    )
