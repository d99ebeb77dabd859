"""aiosctl model setup and key: from what is here to a config, which is written only when its owner says so."""

from __future__ import annotations

import os
import re
import select
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from aiosctl import inputs, render
from aiosctl.servers import DAY_USD, SUGGESTED, Found, Model, Service, look
from aiosctl.verb import connect, globals_of
from aiosd.errors import AiosError, InvalidParams, InvalidState, NoDaemon, NoModelFits
from aiosd.paths import paths
from aiosd.protocol.system import SystemInfo, SystemPing, SystemShutdown

STOP_S = 15.0
"""For a daemon to end once it was told to."""


class Backend(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A section of the config, its keys in the order in which they are written."""

    kind: str
    url: str
    model: str
    key_env: str | None = None
    price_in: float = 0.0
    price_out: float = 0.0


def setup(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Write it without asking.")] = False,
    day_usd: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="USD", help="Use the keys in the environment too, for at most this."),
    ] = None,
) -> None:
    """Find models on this machine and write a config that uses them.

    \b
    aiosctl model setup
    aiosctl model setup --day-usd 2

    Prints the config, and asks before it writes one. A config that is there already is left as it is.
    """
    found = look(os.environ)
    path = paths().config
    wanted = backends(found, paid=day_usd is not None)
    if not wanted:
        raise _nothing(found)
    there = _configured(path)
    new = {name: b for name, b in wanted.items() if (b.url.rstrip("/"), b.model) not in there}
    text = config_text(new, day_usd if any(b.key_env for b in new.values()) else None, whole=there is NONE)
    if found.services and day_usd is None:
        for service in found.services:
            render.notice(
                f"${service.key_env} is set and not used; to use it for at most ${DAY_USD:.2f} a day:"
                f" aiosctl model setup --day-usd {DAY_USD:g}"
            )
    if not new:
        _show(ctx, path, "", written=False)
        render.notice(f"{path} has all that was found already")
        return
    if there is not NONE:
        _show(ctx, path, text, written=False)
        raise InvalidState(
            f"{path} is there already and stays as it is; what it lacks is on standard output",
            hint=f"aiosctl model setup 2> /dev/null >> {path}",
        )
    if not yes:
        _show(ctx, path, text, written=False)
        if not (sys.stdin.isatty() and render.for_people()) or globals_of(ctx).json:
            render.notice(f"nothing was written; to write it to {path}: aiosctl model setup --yes")
            return
        if not _agreed(f"Write this to {path}? [y/N] "):
            render.notice("nothing was written")
            return
    _create(path, text.encode())
    if globals_of(ctx).json:
        _show(ctx, path, text, written=True)
    render.notice(f"wrote {path}")
    _renew(ctx)


def key(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The backend it is for.")],
) -> None:
    """Keep a key from standard input in a file that only you can read, and print the config line that names it.

    \b
    aiosctl model key cloud < key.txt
    """
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise InvalidParams(f"NAME: {name!r} is no name of a backend: letters, digits, `-`, `_` and `.`")
    if sys.stdin.isatty():
        import getpass  # late: only for a keyboard

        text = getpass.getpass(f"Key of {name}: ")
    else:
        text = inputs.read_stdin("the key")
    secret = text.strip()
    if not secret or len(secret.split()) > 1:
        raise InvalidParams("the key is expected on standard input, one word of text; nothing was written")
    file = paths().config_dir / "keys" / name
    replace(file, secret.encode() + b"\n")
    line = f"key_file = {_quoted(str(file))}"
    if globals_of(ctx).json:
        render.document(msgspec.json.encode({"key_file": str(file)}))
    else:
        render.out(line)
        render.notice(f"put this line under [models.backends.{name}] in {paths().config}")


NONE: frozenset[tuple[str, str]] = frozenset({("", "")})
"""What a config that is not there has."""


def backends(found: Found, *, paid: bool) -> dict[str, Backend]:
    """The sections by name: what is on this machine, the smallest first, then what is paid."""
    sections: dict[str, Backend] = {}
    for model in found.models:
        sections[_name(model, sections)] = Backend(kind=model.kind, url=model.url, model=model.name)
    for service in found.services if paid else ():
        sections[service.name] = _paid(service)
    return sections


def config_text(sections: dict[str, Backend], day_usd: float | None, *, whole: bool) -> str:
    """TOML. Where it is a `whole` file, with the tiers: `fast` begins with the smallest model, `balanced` with the
    middle one, `capable` with the largest; what is paid comes last."""
    lines = ["# Written by: aiosctl model setup"] if whole else []
    local = [name for name, b in sections.items() if not b.key_env]
    rest = [name for name, b in sections.items() if b.key_env]
    if whole:
        half = len(local) // 2
        tiers = {"fast": local, "balanced": local[half:] + local[:half], "capable": local[::-1]}
        lines += ["", "[models.tiers]"]
        lines += [f"{tier} = {_quoted(names + rest)}" for tier, names in tiers.items()]
    for name, section in sections.items():
        lines += ["", f"[models.backends.{name}]"]
        lines += [f"{key} = {_quoted(value)}" for key, value in msgspec.to_builtins(section).items()]
    if day_usd is not None:
        lines += ["", "[budget]", f"day_usd = {day_usd:.2f}"]
    return "\n".join(lines).lstrip("\n") + "\n"


def _show(ctx: typer.Context, path: Path, text: str, *, written: bool) -> None:
    if globals_of(ctx).json:
        render.document(msgspec.json.encode({"path": str(path), "config": text, "written": written}))
    else:
        render.out(text, end="")


def _paid(service: Service) -> Backend:
    return Backend(
        kind="openai",
        url=service.url,
        model=service.model,
        key_env=service.key_env,
        price_in=service.price_in,
        price_out=service.price_out,
    )


def _name(model: Model, taken: dict[str, Backend]) -> str:
    """A bare key of TOML: `llama3.2:3b` is llama3-2-3b, a GGUF file its name alone."""
    last = model.name.rsplit("/", 1)[-1].removesuffix(".gguf").removesuffix(":latest")
    name = re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-").lower() or "model"
    return name if name not in taken else f"{name}-{sum(each.startswith(name) for each in taken) + 1}"


def _quoted(value: Any) -> str:
    """A TOML value: its strings and lists of them are written as JSON's are."""
    return msgspec.json.encode(value).decode().replace('","', '", "')


def _configured(path: Path) -> frozenset[tuple[str, str]]:
    """Address and model of each backend in the file. Raises InvalidState for one that cannot be read."""
    import tomllib  # late: only for setup

    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return NONE
    except (OSError, ValueError) as exc:
        raise InvalidState(f"{path}: {exc}; it stays as it is") from None
    try:
        sections: Sequence[dict[str, Any]] = table.get("models", {}).get("backends", {}).values()
        return frozenset((str(s.get("url", "")).rstrip("/"), str(s.get("model", ""))) for s in sections)
    except AttributeError:
        raise InvalidState(f"{path}: [models.backends] holds no tables; it stays as it is") from None


def _nothing(found: Found) -> NoModelFits:
    """Nothing is here to be configured: what there is, and the nearest way to a model."""
    step = found.next_step
    if found.ollama_answers:
        return NoModelFits(f"the Ollama at {found.ollama_url} has no chat model", hint=step)
    if found.ollama_installed:
        return NoModelFits(f"Ollama is installed, but none answers at {found.ollama_url}", hint=step)
    if found.services:
        names = ", ".join(f"${s.key_env}" for s in found.services)
        return NoModelFits(
            f"no model is on this machine; {names} is set, and is used when you say for how much", hint=step
        )
    return NoModelFits(
        f"no Ollama answers at {found.ollama_url}, no llama.cpp server and no key is here; install Ollama"
        f" (https://ollama.com/download), then: aiosctl model pull {SUGGESTED}; or name a server under"
        f" [models.backends] in {paths().config}"
    )


def _agreed(question: str) -> bool:
    with open("/dev/tty", "r+b", buffering=0) as terminal:
        terminal.write(question.encode())
        return terminal.readline().strip().lower() in (b"y", b"yes")


def _create(path: Path, raw: bytes) -> None:
    """Never over another's file, however late it came. Raises InvalidState."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(raw)
    except FileExistsError:
        raise InvalidState(f"{path} is there already and stays as it is") from None


def replace(path: Path, raw: bytes) -> None:
    """All of it or nothing, 0600 from the first moment."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, made = tempfile.mkstemp(dir=path.parent)
    try:
        with open(fd, "wb") as file:
            file.write(raw)
        os.replace(made, path)
    except BaseException:
        os.unlink(made)
        raise


def _renew(ctx: typer.Context) -> None:
    """A daemon that runs ends, if it has nothing to do: the next command starts one, which reads the config."""
    given = globals_of(ctx)
    given.no_start = True
    try:
        with connect(ctx) as client:
            if client.call(SystemInfo()).counts.get("open_tasks"):
                render.notice("aiosd is at work; it reads the config when it starts anew")
                return
            ended = os.pidfd_open(client.call(SystemPing()).pid)
            client.call(SystemShutdown())
    except NoDaemon:
        return
    try:
        if not select.select([ended], [], [], STOP_S)[0]:
            raise AiosError(f"aiosd was told to stop and has not ended within {STOP_S:g} s")
    finally:
        os.close(ended)
    render.notice("stopped aiosd; the next command starts it with this config")
