"""Models behind an Ollama server: /api/chat, streamed. The one home of the `ollama` package.

Wire: https://docs.ollama.com/api. The package's typed methods drop what we need (call ids, `remote_host`,
nested parts of a tool's schema), so requests go through its `_request` as plain JSON and are checked here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import msgspec

from aiosd import addresses, config
from aiosd.models.backend import (
    BackendFailed,
    Delta,
    Done,
    Embedded,
    Message,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)
from aiosd.models.endpoint import (
    CONNECT_S,
    READ_S,
    REFUSED_S,
    Endpoint,
    call_id,
    said,
    tools_of,
)
from aiosd.models.router import must_stay, outgoing
from aiosd.models.window import Fitted, Window
from aiosd.records import Tokens, ToolUse

if TYPE_CHECKING:
    import httpx
    import ollama

END_S = 0.5
"""For the end of a reply after its last word. A server that takes longer gets a new connection."""
T = TypeVar("T")

CONTEXT_MOST = 8192
"""Tokens of a window that the config does not set: what a model could take is often more than the machine's memory."""
KEEP = "5m"
"""How long a model that was loaded ahead waits for its request: Ollama's default for every model."""
CONTEXT_UNKNOWN = 4096
"""Where the server does not say what the model could take: Ollama's own default."""


class _Function(msgspec.Struct):
    name: str
    arguments: dict[str, Any] = {}


class _Call(msgspec.Struct):
    function: _Function


class _Said(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Chunk(msgspec.Struct):
    """A line of /api/chat. Counts that are zero are left out."""

    message: _Said = msgspec.field(default_factory=_Said)
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int = 0
    eval_count: int = 0
    load_duration: int | None = None
    """These in nanoseconds."""
    prompt_eval_duration: int | None = None
    eval_duration: int | None = None
    remote_host: str | None = None
    error: str | None = None
    """Under status 200: what came before is all there is."""


_chunk = msgspec.json.Decoder(_Chunk)


class _Show(msgspec.Struct):
    capabilities: frozenset[str] = frozenset({"completion", "tools"})
    """Servers of before 2025 do not say; what they cannot do they refuse with a sentence."""
    remote_host: str | None = None
    model_info: dict[str, Any] | None = None

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was made for: `llama.context_length`, by the name of its architecture."""
        for key, value in (self.model_info or {}).items():
            if key.endswith(".context_length") and isinstance(value, int):
                return value
        return None


class _Loaded(msgspec.Struct):
    name: str


class _Ps(msgspec.Struct):
    models: list[_Loaded] | None = None


class _Embeddings(msgspec.Struct):
    embeddings: tuple[tuple[float, ...], ...]


class _Details(msgspec.Struct):
    parameter_size: str | None = None


class _Tag(msgspec.Struct):
    name: str
    digest: str = ""
    capabilities: frozenset[str] | None = None
    details: _Details | None = None
    size: int = 0
    remote_host: str | None = None


class _Tags(msgspec.Struct):
    models: list[_Tag] | None = None


class Model(msgspec.Struct, frozen=True):
    """A model that a server holds itself."""

    name: str
    parameters: float
    """Billions; 0 where the server does not say."""
    size_bytes: int
    capabilities: frozenset[str]


class _Refused(Exception):
    """A status of 300 or more."""

    def __init__(self, status: int, text: str, retry_after: str | None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


class Server:
    """One Ollama, shared by the models it holds. Its client is made at first use."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.url = endpoint.url
        self._made: ollama.AsyncClient | None = None
        self._making = anyio.Lock()
        self._shown: dict[str, _Show] = {}
        self._key: str | None = None

    async def chat(self, body: Mapping[str, Any]) -> AsyncGenerator[_Chunk, None]:
        """The lines of /api/chat as they come. Closing it closes the connection, which frees the model."""
        client, model = await self.ready(), str(body["model"])
        with self._failing(model):
            # The package's own stream takes each line apart twice.
            answer = client._client.stream(
                "POST",
                "/api/chat",
                content=msgspec.json.encode(body),
                headers={"content-type": "application/json"},
            )
            rest = b""
            async with answer as response:
                async for piece in response.aiter_bytes():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        if line:
                            yield self._chunk(line, model)
            if rest:
                yield self._chunk(rest, model)

    def _chunk(self, line: bytes, model: str) -> _Chunk:
        chunk = _chunk.decode(line)
        if chunk.error:
            raise BackendFailed(f"`{model}` broke off: {said(chunk.error, self._key)}")
        return chunk

    async def models(self) -> list[Model]:
        """The models that this server runs itself and that chat or make vectors, the smallest first."""
        found = []
        for tag in self.convert(await self._ask("GET", "/api/tags"), _Tags).models or []:
            if is_cloud(tag.name) or tag.remote_host:
                continue
            if tag.capabilities is None:  # servers of before 2026 say it in /api/show only
                if tag.digest not in self._shown:
                    self._shown[tag.digest] = await self.show(tag.name)
                show = self._shown[tag.digest]
            else:
                show = _Show(tag.capabilities)
            if not show.remote_host and show.capabilities & {"completion", "embedding"}:
                billions = _billions(tag.details.parameter_size if tag.details else None)
                found.append(Model(tag.name, billions, tag.size, show.capabilities))
        return sorted(found, key=lambda m: (m.parameters, m.size_bytes, m.name))

    async def show(self, model: str) -> _Show:
        return self.convert(await self._ask("POST", "/api/show", {"model": model}), _Show)

    async def loaded(self) -> list[str]:
        """The models that are in its memory now, with their tags."""
        return [m.name for m in self.convert(await self._ask("GET", "/api/ps"), _Ps).models or []]

    async def embed(self, model: str, texts: Sequence[str]) -> tuple[tuple[float, ...], ...]:
        body = {"model": model, "input": list(texts), "truncate": False}
        return self.convert(await self._ask("POST", "/api/embed", body), _Embeddings).embeddings

    async def aclose(self) -> None:
        if self._made is not None:
            await self._made.close()  # type: ignore[no-untyped-call]

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        client = await self.ready()
        with self._failing(str(body["model"]) if body else ""):
            answer: Any = await client._request(dict, method, path, json=body)
        return self.convert(answer, dict[str, Any])

    async def ready(self) -> ollama.AsyncClient:
        """The client; the first time takes as long as its import, whatever the deadline of what follows."""
        async with self._making:
            if self._made is None:
                self._made = await anyio.to_thread.run_sync(self._make)
        return self._made

    def _make(self) -> ollama.AsyncClient:
        """In a thread: the import takes 0.4 s of CPU."""
        import httpx
        import ollama

        self._key = self.endpoint.key()
        return ollama.AsyncClient(
            self.url,
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
            auth=self._authorize,
            event_hooks={"response": [_refuse]},
            # Its pool polls every idle connection at each request; how many are open is the slots' matter.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
            # A redirect or a proxy could carry private text off the machine.
            follow_redirects=False,
            trust_env=not self.endpoint.direct,
        )

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        """The key of the config or none: the package would send OLLAMA_API_KEY of the environment."""
        request.headers.pop("authorization", None)
        if self._key:
            request.headers["authorization"] = f"Bearer {self._key}"
        return request

    @contextlib.contextmanager
    def _failing(self, model: str) -> Iterator[None]:
        """What the client raises, as BackendFailed."""
        import httpx  # late: it is loaded by the client, which is there by now

        try:
            yield
        except _Refused as exc:
            raise self._refusal(exc, model) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, ConnectionError):
            raise self.nobody() from None
        except httpx.TimeoutException:
            raise self.endpoint.stalled() from None
        except httpx.HTTPError as exc:
            raise self.endpoint.cut(said(str(exc), self._key) or type(exc).__name__) from None
        except (ValueError, TypeError, AttributeError, msgspec.DecodeError) as exc:
            # For a line that is no JSON, and for JSON of another form.
            raise self.endpoint.alien("Ollama", exc) from None

    def nobody(self) -> BackendFailed:
        way = "is it running?"
        if self.endpoint.direct:
            way = (
                "start it with: ollama serve"
                if self.endpoint.has("ollama")
                else "install it from https://ollama.com/download"
            )
        return BackendFailed(f"no Ollama answers at {self.url}; {way}", retry_after_s=REFUSED_S)

    def _refusal(self, exc: _Refused, model: str) -> BackendFailed:
        text = said(str(exc), self._key) or f"HTTP status {exc.status}"
        if exc.status == 404:
            if model and "not found" in text:
                return BackendFailed(
                    f"Ollama has no model `{model}`; get it with: aiosctl model pull {model}"
                )
            return self.endpoint.alien("Ollama", text)
        return self.endpoint.refusal(model, exc.status, text, exc.retry_after, time.time())

    def convert(self, value: Any, type: type[T]) -> T:
        try:
            return msgspec.convert(value, type)
        except msgspec.ValidationError as exc:
            raise self.endpoint.alien("Ollama", exc) from None


class Ollama:
    """One model of an Ollama server."""

    kind = "ollama"

    def __init__(self, name: str, backend: config.Backend, server: Server) -> None:
        self.name = name
        self.model = backend.model
        self.url: str | None = server.url
        self.slots = backend.slots
        self.price_in = backend.price_in
        self.price_out = backend.price_out
        self.takes_tools = True
        """As far as is known: the server says so before the first reply."""
        self.embeds = False
        """Known to be made for vectors."""
        self._near = backend.is_local and not is_cloud(backend.model)
        self.local = self._near
        self._looked = False
        self._server = server
        self.window = Window(backend.context)
        """Its `num_ctx`: one for all requests, since Ollama loads a model anew where it changes. Not known until the
        server was asked, nor for what runs elsewhere, which has a window of its own."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta, None]:
        stays = must_stay(request)
        if stays or request.public is not None or not self._looked:
            # A model can be replaced at any time by one of the same name that runs elsewhere.
            await self._look()
        if stays and not self.local:
            raise BackendFailed(
                f"`{self.model}` runs elsewhere, and this text stays on the machine", fault="request"
            )
        if request.tools and not self.takes_tools:
            raise BackendFailed(f"`{self.model}` takes no tools", fault="request")
        fitted = self.window.fit(outgoing(request, local=self.local))
        if (why := self.window.refusal(fitted.size)) is not None:
            raise BackendFailed(f"`{self.model}` {why}", fault="request")
        body = _body(self.model, fitted.request, self.window.tokens)
        async with contextlib.aclosing(self._server.chat(body)) as lines:
            async for chunk in lines:
                if chunk.remote_host:
                    self.local = False
                if chunk.message.thinking:
                    yield ThinkingDelta(chunk.message.thinking)
                if chunk.message.content:
                    yield TextDelta(chunk.message.content)
                for call in chunk.message.tool_calls or ():
                    yield ToolCallDelta(
                        ToolUse(call_id=call_id(), name=call.function.name, arguments=call.function.arguments)
                    )
                if chunk.done:
                    with contextlib.suppress(BackendFailed), anyio.move_on_after(END_S):
                        async for _ in lines:
                            pass  # to its end, so that the connection serves the next request too
                    yield self._done(chunk, fitted)
                    return
        raise BackendFailed(f"{self.url} ended the reply of `{self.model}` before it was done")

    def _done(self, chunk: _Chunk, fitted: Fitted) -> Done:
        read = chunk.prompt_eval_count
        return Done(
            stop_reason="max_tokens" if chunk.done_reason == "length" else "end_turn",
            usage=Tokens(input_tokens=read, output_tokens=chunk.eval_count),
            load_s=_seconds(chunk.load_duration),
            prompt_s=_seconds(chunk.prompt_eval_duration),
            output_s=_seconds(chunk.eval_duration),
            sent=fitted.memories,
            dropped=self.window.said(fitted.dropped),
            truncated=self.window.read(fitted.size, read),
        )

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Raises BackendFailed, also for a model that makes no vectors or runs elsewhere, and for a text over its
        window: one that was cut would be found by its beginning alone."""
        await self._look()
        if not self.local:
            raise BackendFailed(
                f"`{self.model}` runs elsewhere, and texts stay on the machine", fault="request"
            )
        vectors = await self._server.embed(self.model, texts)
        if len(vectors) != len(texts):
            raise BackendFailed(f"{self.url} gave {len(vectors)} vectors for {len(texts)} texts")
        return Embedded(vectors=vectors, model=self.model, dim=len(vectors[0]) if vectors else 0)

    async def preload(self) -> None:
        """Has it loaded, and kept for KEEP at least: a server with OLLAMA_KEEP_ALIVE=0 would drop it at once, and load
        it again for the request that waits for it. Raises BackendFailed."""
        await self._look()
        options = {} if self.window.tokens is None else {"num_ctx": self.window.tokens}
        body = {"model": self.model, "messages": [], "keep_alive": KEEP, "options": options}
        async with contextlib.aclosing(self._server.chat(body)) as lines:
            async for _ in lines:
                pass

    async def ready(self) -> None:
        """Returns once its client is there. Raises BackendFailed."""
        await self._server.ready()

    async def resident(self) -> bool | None:
        """Whether it is in memory, so that a request need not load it; None for one that runs elsewhere."""
        if not self.local:
            return None
        name = self.model if ":" in self.model else f"{self.model}:latest"
        return name in await self._server.loaded()

    async def probe(self) -> str | None:
        server = self._server
        failed = await server.endpoint.probed(server.nobody, server.ready, self._look)
        return None if failed is None else str(failed)

    async def aclose(self) -> None:
        await self._server.aclose()

    async def _look(self) -> None:
        show = await self._server.show(self.model)
        self.takes_tools = "tools" in show.capabilities
        self.embeds = "embedding" in show.capabilities
        self.local = self._near and not show.remote_host
        self._looked = True
        if self.window.tokens is None and not (show.remote_host or is_cloud(self.model)):
            self.window.tokens = min(show.context_length or CONTEXT_UNKNOWN, CONTEXT_MOST)


def server(name: str, backend: config.Backend, environ: Mapping[str, str]) -> Server:
    """The server of a backend of the config."""
    return Server(Endpoint(name, backend, backend.url or addresses.OLLAMA, environ))


def is_cloud(model: str) -> bool:
    """Whether the name alone says that Ollama sends the text to its own servers."""
    return model.endswith((":cloud", "-cloud"))


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def _body(model: str, request: ModelRequest, window: int | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(m) for m in request.messages],
        "stream": True,
        # From 0.12.6 on a prompt over the window is refused, and an answer that reaches its end stops there; else the
        # server drops the oldest messages without a word, as older ones still do.
        "truncate": False,
        "shift": False,
        "options": {"num_predict": request.max_tokens} | ({} if window is None else {"num_ctx": window}),
    }
    if request.tools:
        body["tools"] = tools_of(request)
    if request.schema is not None:
        body["format"] = request.schema
    return body


def _message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["tool_calls"] = [
            {"id": c.call_id, "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.tool_calls
        ]
    if message.role == "tool":
        wire |= {"tool_name": message.name, "tool_call_id": message.call_id}
    return wire


async def _refuse(response: httpx.Response) -> None:
    """Before the package sees it: its own error loses the headers."""
    if response.status_code < 300:
        return
    await response.aread()
    try:
        text = str(response.json()["error"])
    except (ValueError, TypeError, KeyError):
        text = response.text
    raise _Refused(response.status_code, text, response.headers.get("retry-after"))


def _billions(size: str | None) -> float:
    """A parameter_size as Ollama writes it: 8.0B, 494.03M."""
    units = {"T": 1e3, "B": 1.0, "M": 1e-3, "K": 1e-6}
    try:
        return float(size[:-1]) * units[size[-1]] if size else 0.0
    except (ValueError, KeyError):
        return 0.0
