"""Models behind any server that speaks OpenAI's chat completions, streamed. The one home of the `openai` package.

Wire: https://platform.openai.com/docs/api-reference/chat-streaming. llama.cpp, vLLM and hosted services speak
it too, each with its own liberties; what they take is noted where it is met.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import msgspec

from aiosd import config
from aiosd.models import completions
from aiosd.models.backend import (
    BackendFailed,
    Delta,
    Done,
    Embedded,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)
from aiosd.models.completions import (
    STOP,
    Calls,
    Cards,
    Chunk,
    InputTokens,
    Piece,
    Timings,
    Vectors,
    body_of,
    is_own,
    seconds,
)
from aiosd.models.endpoint import (
    CONNECT_S,
    PROBE_S,
    READ_S,
    REFUSED_S,
    Endpoint,
    said,
)
from aiosd.models.ollama import is_cloud
from aiosd.models.router import must_stay, outgoing
from aiosd.models.window import Fitted, Window, fit, size_bytes, too_long
from aiosd.records import StopReason, Tokens

if TYPE_CHECKING:
    import httpx2
    import openai

NO_KEY = "unused"
"""Sent where the config names no key: local servers ask for none, the package insists on one."""
SMALL = 1024
"""Bytes of a prompt that any window holds: for a longer one the server is asked how large its own is."""
SLACK = 0.97
"""Of the length that a count says would fit: tokens are not spread evenly."""
HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "user-agent",
        "x-stainless-raw-response",
    }
)
"""What a request carries. By the last one the package knows that its answer is wanted as it came. No header that the package takes from the environment (OPENAI_ORG_ID,
OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS), nor what it tells about the machine."""


class OpenAI:
    """One model of one server."""

    kind = "openai"

    def __init__(
        self, name: str, backend: config.Backend, environ: Mapping[str, str], *, counts: bool = False
    ) -> None:
        self.name = name
        self.model = backend.model
        self.url: str | None = backend.url
        # An Ollama serves this wire too, and its cloud models under it.
        self.local = backend.is_local and (backend.local is True or not is_cloud(backend.model))
        self.slots = backend.slots
        self.price_in = backend.price_in
        self.price_out = backend.price_out
        self.window = Window(backend.context)
        self._counts = counts
        """Whether the server tells the tokens of a prompt before it reads it."""
        self._asked = is_own(backend.url or "")
        """Whether it was asked for its window; OpenAI's own does not say."""
        self._endpoint = Endpoint(name, backend, backend.url or "", environ)
        self._made: openai.AsyncOpenAI | None = None
        self._making = anyio.Lock()
        self._key: str | None = None

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        if must_stay(request) and not self.local:
            raise BackendFailed("it is remote, and this text stays on the machine", fault="request")
        stop_reason: StopReason | None = None
        usage = Tokens()
        timings = Timings()
        calls = Calls(self.model, request.max_tokens)
        fitted = await self._fitted(outgoing(request, local=self.local))
        async with contextlib.aclosing(self._chunks(fitted.request)) as chunks:
            async for chunk in chunks:
                if chunk.usage is not None:  # some servers send it with each chunk: the last one counts
                    usage = Tokens(
                        input_tokens=chunk.usage.prompt_tokens or 0,
                        output_tokens=chunk.usage.completion_tokens or 0,
                    )
                timings = chunk.timings or timings
                for choice in chunk.choices or ():
                    delta = choice.delta or Piece()
                    if thinking := delta.reasoning_content or delta.reasoning:
                        yield ThinkingDelta(thinking)
                    if text := delta.content or delta.refusal:
                        yield TextDelta(text)
                    if delta.refusal:
                        stop_reason = "refusal"
                    for piece in delta.tool_calls or ():
                        calls.add(piece)
                    if choice.finish_reason is not None:
                        stop_reason = stop_reason or STOP.get(choice.finish_reason, "end_turn")
        if stop_reason is None:
            raise BackendFailed(f"{self.url} ended the reply of `{self.model}` before it was done")
        for call in calls.whole(cut_off=stop_reason == "max_tokens"):
            yield ToolCallDelta(call)
        yield Done(
            stop_reason=stop_reason,
            usage=usage,
            prompt_s=seconds(timings.prompt_ms),
            output_s=seconds(timings.predicted_ms),
            sent=fitted.memories,
            dropped=self.window.said(fitted.dropped),
            truncated=self.window.read(fitted.size, usage.input_tokens),
        )

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Raises BackendFailed, also for one that is remote and for a server that makes no vectors."""
        if not self.local:
            raise BackendFailed("it is remote, and texts stay on the machine", fault="request")
        client = await self._client()
        with self._failing():
            # The package's own method asks for base64, which not every server knows.
            answer = await client.post(
                "/embeddings",
                cast_to=object,
                body={"model": self.model, "input": list(texts), "encoding_format": "float"},
            )
            found = sorted(msgspec.convert(answer, Vectors).data, key=lambda v: v.index)
        if [v.index for v in found] != list(range(len(texts))):
            raise BackendFailed(f"{self.url} gave {len(found)} vectors for {len(texts)} texts")
        vectors = tuple(v.embedding for v in found)
        return Embedded(vectors=vectors, model=self.model, dim=len(vectors[0]) if vectors else 0)

    async def probe(self) -> str | None:
        failed = await self._endpoint.probed(self._nobody, self._client, self._cards)
        # Not every server lists its models; one that refuses to is there all the same.
        return None if failed is None or failed.fault == "request" else str(failed)

    async def input_tokens(self, request: ModelRequest) -> int:
        """What the prompt comes to in tokens, tools included. A llama.cpp server counts it; others have no such path.

        Raises BackendFailed.
        """
        client = await self._client()
        body = body_of(self.model, self.url or "", request)
        with self._failing():
            counted = await client.post("/chat/completions/input_tokens", body=body, cast_to=object)
            return msgspec.convert(counted, InputTokens).input_tokens

    async def aclose(self) -> None:
        if self._made is not None:
            await self._made.close()

    async def _fitted(self, request: ModelRequest) -> Fitted:
        """The request as the window holds it, by the server's own count where it has one. Raises BackendFailed where
        the window cannot hold it."""
        size = size_bytes(request)
        if not self._asked and size > SMALL:
            await self._look()
        fitted = Fitted(request=request, size=size)
        room = self.window.room(request.max_tokens)
        # A token has a byte at least; the other half is for what a template adds.
        while room is not None and fitted.size > room // 2:
            try:
                counted = await self.input_tokens(fitted.request) if self._counts else None
            except BackendFailed:  # it takes no such request, or is gone: that, the request itself will tell
                counted = None
            if counted is None:
                fitted = self.window.fit(request)
                if (why := self.window.refusal(fitted.size)) is not None:
                    raise BackendFailed(f"`{self.model}` {why}", fault="request")
                break
            if counted <= room:
                break
            smaller = fit(request, int(fitted.size * room / counted * SLACK))
            if smaller.size >= fitted.size:  # nothing more can go
                assert self.window.tokens is not None
                if counted >= self.window.tokens:
                    why = too_long(self.window.tokens, f"{counted:,}")
                    raise BackendFailed(f"`{self.model}` {why}", fault="request")
                break
            fitted = smaller
        return fitted

    async def _cards(self) -> object:
        """What it says of its models. Raises BackendFailed."""
        client = await self._client()
        with self._failing():
            return await client.get("/models", cast_to=object)

    async def _look(self) -> None:
        """Asks for the window, and whether it counts tokens. Most servers say neither."""
        await self._client()  # an import, which may take longer than an answer
        with contextlib.suppress(BackendFailed, TimeoutError), anyio.fail_after(PROBE_S), self._failing():
            cards = msgspec.convert(await self._cards(), Cards).data
            self._asked = True
            card = next((c for c in cards if c.id == self.model), cards[0] if len(cards) == 1 else None)
            if card is None:
                return
            self._counts |= card.owned_by == "llamacpp"
            said = card.max_model_len or (card.meta.n_ctx if card.meta else None)
            if said is not None:
                self.window.tokens = min(said, self.window.tokens or said)

    async def _chunks(self, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        client = await self._client()
        with self._failing():
            # The bytes as they came: with the package's objects an event takes 140 us of CPU instead of 60.
            raw: Any = await client.chat.completions.with_raw_response.create(
                **body_of(self.model, self.url or "", request)
            )
            response: httpx2.Response = raw.http_response
            try:
                async for data in _events(response.aiter_bytes()):
                    if data == b"[DONE]":
                        return
                    chunk = completions.chunk.decode(data)
                    if chunk.error is not None:
                        raise BackendFailed(f"`{self.model}` broke off: {self._said_in(chunk.error)}")
                    if chunk.choices is msgspec.UNSET:
                        raise self._endpoint.alien("OpenAI", "no `choices`")
                    yield chunk
            finally:
                with anyio.move_on_after(PROBE_S, shield=True):
                    await response.aclose()

    def _said_in(self, error: Any) -> str:
        message = error.get("message") if isinstance(error, Mapping) else error
        return said(str(message or error), self._key)

    async def _client(self) -> openai.AsyncOpenAI:
        async with self._making:
            if self._made is None:
                self._made = await anyio.to_thread.run_sync(self._make)
        return self._made

    def _make(self) -> openai.AsyncOpenAI:
        """In a thread: the import takes 0.9 s of CPU."""
        self._key = self._endpoint.key()
        import httpx2
        import openai

        timeout = openai.Timeout(READ_S, connect=CONNECT_S)
        limits = openai.DEFAULT_CONNECTION_LIMITS
        if not self._endpoint.url.startswith("https:"):
            # llama.cpp closes after each answer without saying so: one request in 100 met that. Without TLS a new
            # connection costs next to nothing.
            limits = httpx2.Limits(max_connections=limits.max_connections, max_keepalive_connections=0)
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key or NO_KEY,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=timeout,
                limits=limits,
                event_hooks={"request": [self._bare]},
                # A redirect or a proxy could carry private text off the machine.
                follow_redirects=False,
                trust_env=not self._endpoint.direct,
            ),
        )

    async def _bare(self, request: httpx2.Request) -> None:
        for name in set(request.headers) - HEADERS:
            del request.headers[name]
        request.headers["authorization"] = f"Bearer {self._key or NO_KEY}"

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """What the package raises, as BackendFailed."""
        import httpx2  # late: they are loaded by the client, which is there by now
        import openai

        try:
            yield
        except openai.APIStatusError as exc:
            raise self._refusal(exc) from None
        except openai.APITimeoutError as exc:
            if "Connect" in type(exc.__cause__).__name__:
                raise self._nobody() from None
            raise self._endpoint.stalled() from None
        except openai.APIConnectionError as exc:
            if "Connect" in type(exc.__cause__).__name__:
                raise self._nobody() from None
            why = said(str(exc.__cause__ or exc), self._key)
            raise self._endpoint.cut(why) from None
        except httpx2.TimeoutException:  # these two while the answer is read
            raise self._endpoint.stalled() from None
        except httpx2.HTTPError as exc:
            why = said(str(exc), self._key) or type(exc).__name__
            raise self._endpoint.cut(why) from None
        except (ValueError, msgspec.DecodeError) as exc:  # no JSON, or JSON of another form
            raise self._endpoint.alien("OpenAI", exc) from None

    def _nobody(self) -> BackendFailed:
        return BackendFailed(f"no server answers at {self.url}; is it running?", retry_after_s=REFUSED_S)

    def _refusal(self, exc: openai.APIStatusError) -> BackendFailed:
        text = said(_sentence(exc), self._key)
        if exc.status_code == 404:
            return BackendFailed(f"{self.url} has no model `{self.model}`: {text}", fault="request")
        asked = exc.response.headers.get("retry-after")
        return self._endpoint.refusal(self.model, exc.status_code, text, asked, time.time())


async def _events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events. These servers put each on a line of its own; lines end in bytes, since a text
    may hold what else Unicode calls a line's end."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (data := line[5:].strip()):
                yield data


def _sentence(exc: openai.APIStatusError) -> str:
    """The server's message: `{"error": {"message"}}`, or whatever it sent instead."""
    body = exc.body
    if isinstance(body, Mapping):
        return str(body.get("message") or body.get("error") or body.get("detail") or exc.message)
    return str(body or exc.message)
