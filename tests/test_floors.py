"""Who may import whom. A failure here is a question about the design, not a lint error."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS: list[set[str]] = [
    {"addresses", "errors", "framing", "records", "paths"},
    {"protocol"},
    {
        "config",
        "models.backend",
        "models.breaker",
        "models.estimator",
        "models.queue",
        "models.repetition",
        "models.router",
        "models.window",
        "memory.checks",
        "memory.ranking",
        "tools.schema",
        "tools.policy",
        "tools.subjects",
        "tools.limits",
        "tools.reach",
        "tasks.steps",
        "tasks.trace",
    },
    {"state", "secrets", "child", "stdio", "events", "telemetry", "systemd", "tally", "otel"},
    {"audit"},
    {"models", "memory", "tools"},
    {"tasks"},
    {"server", "discover", "metrics"},
    {"methods"},
    {"daemon", "mcp_server", "reload", "__main__"},
]
"""Lowest first. A name stands for its package too; the longest that fits a module counts."""

ONE_HOME: dict[str, str | tuple[str, str]] = {
    "mcp": ("tools.mcp_bridge", "mcp_server"),  # the client and the door: two processes, neither the daemon
    "mcp_types": ("tools.mcp_bridge", "mcp_server"),
    "sqlite3": "state",
    "qdrant_edge": "memory.index",
    "qdrant_client": "memory.remote",
    "onnxruntime": "memory.embedder",
    "tokenizers": "memory.embedder",
    "numpy": "memory.embedder",
    "ollama": "models.ollama",
    "openai": "models.openai",
    "xllamacpp": "models.gguf_server",
    "jsonrpcserver": "server",
    "oslash": "server",
    "platformdirs": "paths",
    "prometheus_client": "metrics",
    "opentelemetry": "otel",
}
"""Where each vendor's package, and SQL, may be imported."""

MODULES = sorted(
    path.relative_to(ROOT / "aiosd").with_suffix("").as_posix().replace("/", ".")
    for path in (ROOT / "aiosd").rglob("*.py")
    if path.stem != "__init__"
)


def floor(module: str) -> int:
    fitting = [
        (len(name), i)
        for i, names in enumerate(FLOORS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    assert fitting, f"aiosd.{module} stands on no floor: give it one in FLOORS"
    return max(fitting)[1]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str]) -> set[str]:
    """The modules of aiosd among imported names, without the package's own name."""
    return {
        module
        for name in names
        if name.startswith("aiosd.")
        for module in MODULES
        if f"{name}.".startswith(f"aiosd.{module}.")
    }


def source(module: str) -> Path:
    return ROOT / "aiosd" / f"{module.replace('.', '/')}.py"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_down_or_within_its_own_folder(module: str) -> None:
    for other in ours(imports(source(module))):
        below = floor(other) < floor(module)
        beside = module.split(".")[0] == other.split(".")[0]
        neighbours = floor(other) == floor(module) and "." not in module and "." not in other
        assert below or beside or neighbours, f"{module} imports {other}"


@pytest.mark.parametrize("module", MODULES)
def test_a_vendor_has_one_home(module: str) -> None:
    for name in imports(source(module)):
        home = ONE_HOME.get(name.split(".")[0])
        homes = (home,) if isinstance(home, str) else home
        assert homes is None or any(f"{module}.".startswith(f"{h}.") for h in homes), (
            f"{module} imports {name}"
        )


@pytest.mark.parametrize("path", sorted((ROOT / "aiosctl").glob("*.py")), ids=lambda p: p.stem)
def test_the_command_line_imports_only_the_ground_floor(path: Path) -> None:
    above = {m for m in ours(imports(path)) if floor(m) > floor("protocol.base")}
    assert not above, f"{path.stem} imports {', '.join(sorted(above))}"


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_command_line_starts_light() -> None:
    heavy = {
        "asyncio",
        "anyio",
        "pydantic",
        "openai",
        "ollama",
        "qdrant_client",
        "qdrant_edge",
        "onnxruntime",
    }
    assert not (heavy | {"sqlite3", "rich", "httpx", "jsonschema"}) & loaded_by("aiosctl.main")


def test_the_daemon_starts_without_a_vendors_sdk() -> None:
    heavy = {
        "pydantic",
        "openai",
        "ollama",
        "qdrant_client",
        "qdrant_edge",
        "onnxruntime",
        "numpy",
        "httpx",
        "rich",
    }
    assert not heavy & loaded_by("aiosd.daemon")


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "aiosd").rglob("*.py")) + sorted((ROOT / "aiosctl").rglob("*.py")),
    ids=lambda p: f"{p.parent.name}/{p.stem}",
)
def test_a_module_fits_in_one_look(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines: it may have become two rooms"
