"""aiosctl mcp: servers of the Model Context Protocol, whose tools sessions may use."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from aiosctl import render, resolve
from aiosctl.client import Client
from aiosctl.quick import here
from aiosctl.setup import replace
from aiosctl.verb import Verb, answer, connect, noun
from aiosd.errors import AiosError, InvalidParams, InvalidState, NotFound
from aiosd.paths import paths
from aiosd.protocol.mcp import McpApprove, McpList, McpServer, McpServers
from aiosd.protocol.sessions import SessionCreate
from aiosd.protocol.system import SystemReload

app = noun("MCP servers, whose tools sessions may use.")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
START_S = 180.0
"""For the daemon to start a server and ask for its tools."""
INSTALL_S = 600.0

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="The server's name; its tools are called NAME__TOOL.")
]


@app.command("list", cls=Verb)
def mcp_list(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Names alone.")] = False,
) -> None:
    """List the servers of the config and what became of their tools.

    \b
    aiosctl mcp list
    """

    def text(found: McpServers) -> None:
        if quiet:
            render.ids(each.name for each in found.servers)
            return
        render.table(
            ["name", "runs", "hosts", "tools", "waiting", "problem"],
            [
                (
                    each.name,
                    each.runs,
                    " ".join(each.hosts) or None,
                    len(each.tools),
                    ", ".join(tool.name for tool in each.tools if tool.state in ("changed", "new")) or None,
                    each.problem,
                )
                for each in found.servers
            ],
        )

    with connect(ctx) as client:
        answer(ctx, client, McpList(), text)


@app.command("approve", cls=Verb)
def mcp_approve(ctx: typer.Context, name: Name) -> None:
    """Approve a server's tools as it describes them now.

    \b
    aiosctl mcp approve time

    A tool that changed since it was approved is not called until then.
    """
    with connect(ctx) as client:
        answer(ctx, client, McpApprove(name=name), _tell, timeout_s=START_S)


@app.command("add", cls=Verb)
def mcp_add(
    ctx: typer.Context,
    name: Name,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND [ARG]...", help="The program, after `--`.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Of a server that speaks streamable HTTP.")
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="HOST", help="What it may reach, as `api.example.com`; nothing without."
        ),
    ] = None,
    readable: Annotated[
        list[Path] | None, typer.Option("--path", metavar="PATH", help="A file or folder that it may read.")
    ] = None,
    cwd: Annotated[
        Path | None, typer.Option("--cwd", metavar="DIR", help="Its folder, to which it may write.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="For its environment.")
    ] = None,
) -> None:
    """Add a server to the config, start it inside walls, and approve the tools it has.

    \b
    aiosctl mcp add time -- mcp-server-time
    aiosctl mcp add docs --path ~/docs -- npx -y @modelcontextprotocol/server-filesystem ~/docs
    aiosctl mcp add search --url https://mcp.example.com/mcp

    What npx would fetch at each start is installed once instead, without running its install scripts.
    """
    if not NAME.fullmatch(name) or "__" in name:
        raise InvalidParams("NAME: expected at most 32 letters, digits, `-` and single `_`")
    if (url is None) == (not command):
        raise InvalidParams("expected either a command after `--` or --url", hint="aiosctl mcp add --help")
    file = paths().config
    before = file.read_bytes() if file.exists() else b""
    if name in _servers(before):
        raise InvalidState(f"{file} has an MCP server `{name}` already", hint=f"aiosctl mcp remove {name}")
    fields: dict[str, Any] = {}
    allowed = [str(path.absolute()) for path in readable or ()]
    if url is not None:
        fields["url"] = url
    else:
        program, folders = _program(name, command or [])
        fields |= {"command": program[0], "args": program[1:]}
        allowed += folders
    fields |= {"cwd": str(cwd.absolute())} if cwd else {}
    fields |= {"hosts": hosts} if hosts else {}
    fields |= {"paths": allowed} if allowed else {}
    text = config_section(name, fields, dict(_pair(each) for each in env or ()))
    replace(file, before.rstrip() + (b"\n\n" if before.strip() else b"") + text.encode())
    try:
        with connect(ctx) as client:
            _reload(client)
            answer(ctx, client, McpApprove(name=name), _tell, timeout_s=START_S)
    except AiosError:
        replace(file, before)  # what does not start is not added
        with connect(ctx) as client:
            _reload(client)
        raise


@app.command("remove", cls=Verb)
def mcp_remove(ctx: typer.Context, name: Name) -> None:
    """Remove a server from the config, with its tools.

    \b
    aiosctl mcp remove time
    """
    file = paths().config
    before = file.read_bytes() if file.exists() else b""
    if name not in _servers(before):
        raise NotFound(f"{file} has no MCP server `{name}`", hint="aiosctl mcp list")
    after = without(before.decode(), name)
    if name in _servers(after.encode()):
        raise InvalidState(f"`{name}` is not in a section of its own", hint=f'"${{EDITOR:-vi}}" {file}')
    replace(file, after.encode())
    shutil.rmtree(_installed(name), ignore_errors=True)
    with connect(ctx) as client:
        _reload(client)


@app.command("serve", cls=Verb)
def mcp_serve(
    ctx: typer.Context,
    session_id: Annotated[
        str | None,
        typer.Option(
            "--session", "-s", metavar="ID", help="Whose tools and memory; without it, a new one's."
        ),
    ] = None,
) -> None:
    """Offer a session's tools and memory to an MCP client, on standard input and output.

    \b
    aiosctl mcp serve -s work
    claude mcp add aiosd -- aiosctl mcp serve -s work

    A tool that would ask is refused, unless you have once answered `always`.
    """
    if importlib.util.find_spec("mcp") is None:
        raise InvalidState("the MCP SDK is not installed beside aiosctl", hint="pip install 'aiosd[mcp]'")
    with connect(ctx) as client:
        if session_id is None:
            new = SessionCreate(title="mcp serve", workspace=here())
            session_id = client.call(new).session_id
        else:
            session_id = resolve.session(client, session_id, state="open")
        path = client.path
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "aiosd.mcp_server", str(path), session_id])


# --- the config --------------------------------------------------------------------------------------------


def config_section(name: str, fields: dict[str, Any], env: dict[str, str]) -> str:
    """TOML; its strings are JSON's."""

    def value(given: object) -> str:
        return msgspec.json.encode(given).decode().replace("\x7f", "\\u007f")

    lines = [f"[mcp.servers.{name}]", *(f"{key} = {value(given)}" for key, given in fields.items())]
    if env:
        lines += ["", f"[mcp.servers.{name}.env]", *(f"{value(key)} = {value(v)}" for key, v in env.items())]
    return "\n".join([*lines, ""])


def without(text: str, name: str) -> str:
    """The config without that server's sections, with all else as it was."""
    own = re.compile(rf"\s*\[\s*mcp\s*\.\s*servers\s*\.\s*[\"']?{re.escape(name)}[\"']?\s*(\.[^\]]*)?\]")
    kept: list[str] = []
    inside = False
    for line in StringIO(
        text, newline="\n"
    ):  # splitlines() would part strings at what is no line's end in TOML
        if line.lstrip().startswith("["):
            inside = own.match(line) is not None
        if not inside:
            kept.append(line)
    return "".join(kept).rstrip("\n") + "\n" if kept else ""


def _servers(config: bytes) -> dict[str, Any]:
    """Raises InvalidState for a config that is no TOML."""
    try:
        found = tomllib.loads(config.decode()).get("mcp", {}).get("servers", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError) as exc:
        raise InvalidState(
            f"{paths().config}: not TOML: {exc}", hint=f'"${{EDITOR:-vi}}" {paths().config}'
        ) from None
    return found if isinstance(found, dict) else {}


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidParams(f"--env {text}: expected KEY=VALUE")
    return key, value


# --- the program -------------------------------------------------------------------------------------------


def _program(name: str, command: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is run, and what it must be able to read."""
    if Path(command[0]).name == "npx":
        return _from_npm(name, command[1:])
    found = shutil.which(command[0])
    if found is None or found.startswith(("/usr/", "/bin/")):
        return list(command), []
    # Where the walls show it: by its whole path, with the environment that it stands in.
    real = Path(found).resolve()
    venv = real.parents[1] if real.parent.name == "bin" else real
    return [os.path.abspath(found), *command[1:]], sorted(
        {str(venv), str(Path(found).absolute().parent.parent)}
    )


def _from_npm(name: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The package that npx would fetch, installed once, outside the walls but without its scripts."""
    rest = [each for each in arguments if each not in ("-y", "--yes")]
    if not rest or rest[0].startswith("-"):
        raise InvalidParams("expected `npx [-y] PACKAGE [ARG]...`")
    npm = shutil.which("npm")
    if npm is None:
        raise NotFound("npm is not installed here", hint="sudo apt-get install npm")
    folder = _installed(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    render.notice(f"installing {rest[0]} in {folder}")
    done = subprocess.run(
        [
            npm,
            "install",
            "--prefix",
            str(folder),
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--",
            rest[0],
        ],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        timeout=INSTALL_S,
        check=False,
    )
    if done.returncode:
        raise AiosError(f"npm did not install {rest[0]}: exit status {done.returncode}")
    package = re.sub(r"(?<=.)@.*", "", rest[0])
    home = folder / "node_modules" / package
    try:
        programs = msgspec.json.decode((home / "package.json").read_bytes())["bin"]
        file = (
            programs
            if isinstance(programs, str)
            else programs.get(package.split("/")[-1], next(iter(programs.values())))
        )
    except (OSError, KeyError, StopIteration, msgspec.DecodeError):
        raise InvalidParams(f"{rest[0]} has no program to run") from None
    return ["node", str(home / file), *rest[1:]], [str(folder)]


def _installed(name: str) -> Path:
    return paths().data / "mcp" / name


def _reload(client: Client) -> None:
    client.call(SystemReload())


def _tell(server: McpServer) -> None:
    render.notice(
        f"{server.name} has {len(server.tools)} tools; a session needs the permission `{server.name}`"
    )
    render.ids(f"{server.name}__{tool.name}" for tool in server.tools)
