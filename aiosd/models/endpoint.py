"""What the backends behind HTTP share: the address, the key, and how long anything may take."""

from __future__ import annotations

import math
import random
import shutil
import string
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec

from aiosd import config
from aiosd.models.backend import BackendFailed, ModelRequest
from aiosd.systemd import credential

CONNECT_S = 2.0
READ_S = 300.0
"""Between two chunks. Loading a large model from disk comes before the first one, and may take minutes."""
PROBE_S = 2.0
BUSY_S = 5.0
"""How long a server that is busy and does not say for how long is left alone."""
REFUSED_S = 2.0
"""How long one that refuses connections is left alone: asking costs next to nothing, and it may start now."""
STALLED_S = 60.0
"""How long one that said nothing for READ_S is left alone: the next request need not wait as long again."""
MOST_SAID = 300
"""Characters of a server's own error text that are passed on."""


class Endpoint:
    """A server of models. What stands in the environment is used only where the config names it."""

    def __init__(self, name: str, backend: config.Backend, url: str, environ: Mapping[str, str]) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self.backend = backend
        self.direct = backend.is_local or msgspec.structs.replace(backend, url=url, local=None).is_local
        """No proxy of the environment stands between: it would see what must not leave the machine."""
        self._environ = environ

    @property
    def key_name(self) -> str | None:
        return f"${self.backend.key_env}" if self.backend.key_env else self.backend.key_file

    def key(self) -> str | None:
        """The key that the config names; blocks on its file. Raises BackendFailed where it names one in vain."""
        if self.backend.key_env:
            if value := self._environ.get(self.backend.key_env, "").strip():
                return value
            if passed := credential(self.backend.key_env, self._environ):
                return passed
            raise BackendFailed(
                f"its key ${self.backend.key_env} (key_env) is not set; a file can hold it:"
                f" aiosctl model key {self.name}",
                retry_after_s=math.inf,
            )
        if self.backend.key_file:
            try:
                return Path(self.backend.key_file).expanduser().read_text().strip()
            except (OSError, UnicodeDecodeError) as exc:
                why = exc.strerror if isinstance(exc, OSError) else "not text"
                raise BackendFailed(f"its key file {self.backend.key_file}: {why}") from None
        return None

    def has(self, program: str) -> bool:
        """Whether this machine has it."""
        return shutil.which(program, path=self._environ.get("PATH")) is not None

    # --- what goes wrong, in the words and with the consequences that all servers share

    def refusal(
        self, model: str, status: int, text: str, retry_after: str | None, now: float
    ) -> BackendFailed:
        """A status of 400 or more. `text` is the server's own, `now` the time of day."""
        match status:
            case 401 | 403:
                key = self.key_name
                what = (
                    f"the key in {key}" if key else f"to answer without a key (set key_env of `{self.name}`)"
                )
                return BackendFailed(f"{self.url} refused {what}", retry_after_s=math.inf)
            case 429 | 503:
                wait_s = retry_after_s(retry_after, now)
                busy = retry_after is not None
                return BackendFailed(f"{self.url} is busy: {text}", retry_after_s=wait_s, busy=busy)
            case _ if 400 <= status < 500 or status == 501:
                return BackendFailed(f"`{model}` refused the request: {text}", fault="request")
            case _:
                return BackendFailed(f"{self.url} failed with status {status}: {text}")

    def stalled(self) -> BackendFailed:
        return BackendFailed(f"{self.url} said nothing for {READ_S:.0f} s", retry_after_s=STALLED_S)

    def cut(self, why: str) -> BackendFailed:
        return BackendFailed(f"{self.url} cut the connection: {why}")

    def alien(self, protocol: str, why: object) -> BackendFailed:
        return BackendFailed(f"{self.url} does not speak {protocol}'s protocol: {why}")

    async def probed(
        self,
        nobody: Callable[[], BackendFailed],
        ready: Callable[[], Awaitable[object]],
        ask: Callable[[], Awaitable[object]],
    ) -> BackendFailed | None:
        """How `ask` fails, within PROBE_S; before it, `ready` takes as long as an import does. Nothing is imported for
        a server that is not there."""
        if not await self.listens():
            return nobody()
        try:
            await ready()
            with anyio.fail_after(PROBE_S):
                await ask()
        except BackendFailed as exc:
            return exc
        except TimeoutError:
            return BackendFailed(f"{self.url} did not answer within {PROBE_S:.0f} s")
        return None

    async def listens(self, within_s: float = PROBE_S) -> bool:
        """Whether anything accepts connections there: known without the SDK, whose import costs up to 1 s."""
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with anyio.fail_after(within_s):
                stream = await anyio.connect_tcp(parts.hostname or "", port)
        except OSError:  # TimeoutError is one
            return False
        await stream.aclose()
        return True


def call_id() -> str:
    """An id for a tool call, ours: some servers count from 0 in each reply, or give none. Nine letters and digits
    are what the strictest one takes back (Mistral)."""
    return "".join(random.choices(string.ascii_letters + string.digits, k=9))


def tools_of(request: ModelRequest) -> list[dict[str, Any]]:
    """Its tools, as Ollama takes them too."""
    return [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": t.input_schema},
        }
        for t in request.tools
    ]


def retry_after_s(value: str | None, now: float) -> float:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3: seconds or a date); BUSY_S for none or nonsense."""
    if value is None:
        return BUSY_S
    try:
        return max(0.0, float(value)) if value.strip().isdecimal() else _until(value, now)
    except (ValueError, TypeError, OverflowError):
        return BUSY_S


def _until(value: str, now: float) -> float:
    return max(0.0, parsedate_to_datetime(value).timestamp() - now)


def said(text: str, key: str | None) -> str:
    """A server's own words, short, on one line, and without our key: some servers echo it."""
    if key:
        text = text.replace(key, "***")
    text = " ".join(text.split())
    return text if len(text) <= MOST_SAID else text[:MOST_SAID] + "..."
