"""aiosctl config: the file that says which models, tools and limits there are."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer

from aiosctl import render
from aiosctl.verb import Verb, globals_of, noun
from aiosd.errors import AiosError, ConfigError
from aiosd.paths import paths

app = noun("Config: which models, tools and limits there are.")

CHECK_S = 30.0


@app.command("path", cls=Verb)
def path() -> None:
    """Print where the config is looked for. The file need not be there.

    \b
    aiosctl config path
    cp contrib/config.toml "$(aiosctl config path)"
    """
    render.out(str(paths().config))


@app.command("show", cls=Verb)
def show(ctx: typer.Context) -> None:
    """Print every setting as it holds, defaults too, a line each.

    \b
    aiosctl config show | grep budget
    """
    raw = checked()
    if globals_of(ctx).json:
        render.document(raw)
        return
    for key, value in flat(msgspec.json.decode(raw)):
        render.out(f"{key} = {msgspec.json.encode(value).decode()}")


@app.command("check", cls=Verb)
def check(ctx: typer.Context) -> None:
    """Say whether the config loads, and if not, what is wrong where. Exits with 78 then.

    \b
    aiosctl config check && aiosctl reload
    """
    raw = checked()
    file = paths().config
    if globals_of(ctx).json:
        render.document(msgspec.json.encode({"path": str(file), "ok": bool(raw)}))
    else:
        render.out(f"{file}: ok" if file.exists() else f"{file}: not there; the defaults hold")


@app.command("edit", cls=Verb)
def edit() -> None:
    """Open the config in $VISUAL or $EDITOR, and check it after.

    \b
    aiosctl config edit && aiosctl reload
    """
    file = paths().config
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        status = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode
    except (FileNotFoundError, ValueError):
        raise ConfigError(f"there is no editor `{editor}`", hint="EDITOR=nano aiosctl config edit") from None
    if status:
        raise AiosError(f"`{editor}` ended with {status}")
    checked()


def checked() -> bytes:
    """The config as aiosd reads it, in JSON. Raises ConfigError with the sentence that aiosd has for it."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "aiosd", "--check-config"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_S,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"aiosd did not read the config within {CHECK_S:g} s") from None
    if done.returncode:
        raise last_error(done.stderr.decode(errors="replace")) or ConfigError(
            f"aiosd ended with {done.returncode} before it had read the config"
        )
    return done.stdout.strip()


def last_error(log: str) -> ConfigError | None:
    """What the daemon's log says last that is wrong, with the line that mends it."""
    for line in reversed(log.splitlines()):
        try:
            entry = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            continue
        if entry.get("level") == "error" and isinstance(entry.get("message"), str):
            return ConfigError(entry["message"], hint=entry.get("hint"))
    return None


def flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting under its key path: `models.backends.small.slots`."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from flat(each, f"{where}.{key}" if where else key)
    else:
        yield where, value


def without(text: str, complaint: str) -> str | None:
    """The config with the line commented out that a complaint names; None where it names none.

    Complaints are tomllib's, `... (at line 3, column 7)`, and aiosd's, `PATH: models.backends.small.slots: ...`; of a
    section that lacks something, the whole section goes.
    """
    lines = text.split("\n")
    if found := re.search(r"\(at line (\d+)", complaint):
        at = int(found[1]) - 1
        return _commented(lines, at, at + 1)
    named_keys = re.findall(r"(?:^|: )([\w.-]+)(?=[:\[])", complaint)
    if unknown := re.search(r"unknown field `([^`]+)`", complaint):
        named_keys = [f"{key}.{unknown[1]}" for key in named_keys] + [unknown[1]]
    for key in named_keys:
        section = ""
        for at, line in enumerate(lines):
            if header := re.match(r"\s*\[([^\[\]]+)\]", line):
                section = header[1].strip()
                if section == key:
                    end = next(
                        (n for n in range(at + 1, len(lines)) if lines[n].lstrip().startswith("[")),
                        len(lines),
                    )
                    return _commented(lines, at, end)
                continue
            named = re.match(r"\s*([\w-]+)\s*=", line)
            if named and (f"{section}.{named[1]}" if section else named[1]) == key:
                return _commented(lines, at, at + 1)
    return None


def _commented(lines: list[str], start: int, end: int) -> str | None:
    if not any(line.strip() and not line.lstrip().startswith("#") for line in lines[start:end]):
        return None
    kept = [f"# {line}" if start <= n < end and line.strip() else line for n, line in enumerate(lines)]
    return "\n".join(kept)


def mended(file: Path) -> list[str]:
    """Makes a config load: what is wrong in it is commented out, or the file is put aside; what was done.

    The file as it was stays beside it, as `config.toml.before`.
    """
    done: list[str] = []
    while True:
        try:
            checked()
            return done
        except ConfigError as exc:
            complaint = str(exc)
        if not done:
            os.replace(file, file.with_name(f"{file.name}.before"))
            text = file.with_name(f"{file.name}.before").read_bytes().decode(errors="replace")
        less = without(text, complaint)
        if less is None or len(done) > MOST_WRONG:
            file.unlink(missing_ok=True)
            return [*done, f"put {file} aside as {file.name}.before: {complaint}"]
        text = less
        file.touch(mode=0o600)
        file.write_text(text)
        done.append(f"commented out in {file}: {complaint}")


MOST_WRONG = 20
"""Lines of a config that are commented out one by one, before all of it is put aside."""
