"""aiosctl model setup, pull, key: what a user without a model sees, and what comes of the commands it is shown."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from aiosctl import setup
from aiosctl.servers import Found, Model
from aiosd import config
from aiosd.protocol.models import ModelList
from tests.aiosctl_double import Ctl, Double
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.ollama_double import Held, OllamaDouble
from tests.doubles.openai_double import OpenAIDouble
from tests.terminals import OnTerminal

pytestmark = pytest.mark.anyio

Done = subprocess.CompletedProcess[str]
STARTS_IT = ("ollama serve", "sudo systemctl start ollama")


async def ran(work: Callable[[], Done]) -> Done:
    """What blocks, off the loop that the doubles run on."""
    return await anyio.to_thread.run_sync(work)


@pytest.fixture
def home(tmp_path: Path) -> Daemon:
    """The home of a daemon that is not running yet; `ctl` starts none."""
    return Daemon(tmp_path / "home")


@pytest.fixture
def installed(home: Daemon, tmp_path: Path) -> None:
    """Ollama's program is on the PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ollama").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "ollama").chmod(0o755)
    home.environ["PATH"] = f"{tmp_path / 'bin'}:{home.environ['PATH']}"


def bare(home: Daemon) -> None:
    """Whatever this machine has on its PATH, no Ollama."""
    home.environ["PATH"] = "/nonexistent"


# --- nothing is here ----------------------------------------------------------------------------------------


def test_without_a_model_a_quote_says_what_it_is_and_what_to_do(home: Daemon) -> None:
    bare(home)
    with home:
        done = home.ctl("run", "Which port is it?", stdin=b"The port is 4711.\n")
    assert (done.returncode, done.stdout) == (0, "stdin:1: The port is 4711.\n")
    assert done.stderr == "aiosctl: quoted, not generated; for a model: aiosctl model setup\n"


def test_without_a_model_and_nothing_to_quote_the_next_step_is_the_same(home: Daemon) -> None:
    bare(home)
    with home:
        done = home.ctl("run", "Who won the chess match?")
        coding = home.ctl("run", "--tier", "capable", "Prove it")
    for each in (done, coding):
        assert (each.returncode, each.stdout) == (78, "")
        assert each.stderr.endswith("\n  try: aiosctl model setup\n")


def test_setup_without_anything_names_the_ways_to_a_model(home: Daemon) -> None:
    bare(home)
    done = home.ctl("model", "setup")
    assert (done.returncode, done.stdout) == (78, "")
    assert "https://ollama.com/download" in done.stderr and "aiosctl model pull llama3.2" in done.stderr


@pytest.mark.usefixtures("installed")
def test_an_ollama_that_is_installed_and_stopped_is_to_be_started(home: Daemon) -> None:
    with home:
        run = home.ctl("run", "Which port is it?", stdin=b"The port is 4711.\n")
    done = home.ctl("model", "setup")
    assert run.returncode == 0
    assert run.stderr.removeprefix("aiosctl: quoted, not generated; for a model: ").strip() in STARTS_IT
    assert (done.returncode, done.stdout) == (78, "")
    assert "Ollama is installed, but none answers at http://127.0.0.1:9\n" in done.stderr
    assert done.stderr.rpartition("try: ")[2].strip() in STARTS_IT


async def test_an_ollama_without_a_chat_model_is_to_pull_one(home: Daemon) -> None:
    async with OllamaDouble(models={"e": Held(capabilities=("embedding",))}) as ollama:
        home.environ["OLLAMA_HOST"] = ollama.url

        def run() -> Done:
            with home:
                return home.ctl("run", "Who won the chess match?")

        done, setup = await ran(run), await ran(lambda: home.ctl("model", "setup"))
    for each in (done, setup):
        assert (each.returncode, each.stdout) == (78, "")
        assert each.stderr.endswith("try: aiosctl model pull llama3.2\n")


def test_a_key_in_the_environment_is_used_for_a_cap_alone(home: Daemon) -> None:
    bare(home)
    home.environ["OPENAI_API_KEY"] = "sk-secret"
    with home:
        run = home.ctl("run", "Who won the chess match?")
    done = home.ctl("model", "setup")
    for each in (run, done):
        assert (each.returncode, each.stdout) == (78, "")
        assert each.stderr.endswith("try: aiosctl model setup --day-usd 2\n")
    shown = home.ctl("model", "setup", "--day-usd", "2")
    assert shown.returncode == 0
    (home.home / "config.toml").write_text(shown.stdout)
    loaded = config.load(home.home / "config.toml")
    assert loaded.budget.day_usd == 2.0
    assert loaded.models.backends["openai"].key_env == "OPENAI_API_KEY"
    assert loaded.models.backends["openai"].price_out > 0
    assert "sk-secret" not in run.stderr + done.stderr + shown.stdout + shown.stderr


def test_an_ollama_host_that_is_no_address_costs_no_answer(home: Daemon) -> None:
    bare(home)
    wrong = {"OLLAMA_HOST": "http://[::1"}
    with home:
        done = home.ctl("run", "Which port is it?", stdin=b"The port is 4711.\n", environ=wrong)
    assert (done.returncode, done.stdout) == (0, "stdin:1: The port is 4711.\n")
    setup = home.ctl("model", "setup", environ=wrong)
    assert setup.returncode == 78 and "OLLAMA_HOST" in setup.stderr


# --- something is here --------------------------------------------------------------------------------------


async def test_in_a_pipe_the_config_is_shown_and_not_written(home: Daemon) -> None:
    async with OllamaDouble() as ollama:
        home.environ["OLLAMA_HOST"] = ollama.url
        done = await ran(lambda: home.ctl("model", "setup", stdin=b"y\n"))
        assert ollama.chats() == []
    assert done.returncode == 0
    assert 'model = "small"' in done.stdout
    assert done.stderr.endswith(
        "to write it to %s: aiosctl model setup --yes\n" % (home.home / "config.toml")
    )
    assert not (home.home / "config.toml").exists()


async def test_with_yes_the_config_is_written_and_the_daemon_uses_it(home: Daemon) -> None:
    async with OllamaDouble() as ollama, OpenAIDouble() as llama:
        home.environ |= {"OLLAMA_HOST": ollama.url, "LLAMA_ARG_PORT": str(llama.port)}

        def work() -> Done:
            with home:
                done = home.ctl("model", "setup", "--yes")
                assert done.returncode == 0, done.stderr
                assert "stopped aiosd" in done.stderr
                assert home.ended() == 0
            with home:
                names = [b.name for b in home.call(ModelList()).backends]
                assert sorted(names) == ["extractive", "m", "small"]
                return home.ctl("model", "infer", "hi")

        assert (await ran(work)).stdout == "Hello there.\n"
        path = home.home / "config.toml"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert config.load(path).models.backends["m"].url == llama.base


async def test_on_a_terminal_it_asks_before_it_writes(
    tmp_path: Path, double: Double, ctl: Ctl, on_terminal: OnTerminal
) -> None:
    del double  # its socket: no daemon is started
    path = tmp_path / ".config/aiosd/config.toml"
    async with OllamaDouble() as ollama:
        ctl.env["OLLAMA_HOST"] = ollama.url

        def answering(key: bytes) -> tuple[int, str]:
            terminal = on_terminal(ctl, "model", "setup", columns=200)
            terminal.until("[y/N] ")
            assert not path.exists()
            terminal.type(key + b"\n")
            return terminal.end()

        status, shown = await anyio.to_thread.run_sync(answering, b"n")
        assert (status, path.exists()) == (0, False) and "nothing was written" in shown
        status, shown = await anyio.to_thread.run_sync(answering, b"y")
    assert f"wrote {path}" in shown and path.exists()


async def test_a_config_that_is_there_stays_and_what_it_lacks_is_printed(home: Daemon) -> None:
    path = home.home / "config.toml"
    async with OllamaDouble(models={"small": Held(), "large": Held(size="70B")}) as ollama:
        old = f'[models.backends.mine]\nkind = "ollama"\nmodel = "small"\nurl = "{ollama.url}"\n'
        path.write_text(old)
        home.environ["OLLAMA_HOST"] = ollama.url
        done = await ran(lambda: home.ctl("model", "setup", "--yes"))
        assert (done.returncode, path.read_text()) == (1, old)
        assert 'model = "large"' in done.stdout and 'model = "small"' not in done.stdout
        path.write_text(old + done.stdout)
        again = await ran(lambda: home.ctl("model", "setup", "--yes"))
        document = await ran(lambda: home.ctl("model", "setup", "--json"))
    assert set(config.load(path).models.backends) == {"mine", "large"}
    assert (again.returncode, again.stdout) == (0, "")
    assert json.loads(document.stdout) == {"path": str(path), "config": "", "written": False}
    path.write_text("a = [")
    broken = home.ctl("model", "setup", "--yes")
    assert (broken.returncode, path.read_text()) == (78, "a = [")


def test_what_is_written_loads_and_fills_the_tiers_by_size(tmp_path: Path) -> None:
    sizes = {"llama3.2:3b": 3.0, "qwen3:70b": 70.0, "org/Phi 4.gguf": 14.0, "llama3.2": 3.2}
    models = tuple(Model("ollama", "http://127.0.0.1:1", name, size) for name, size in sizes.items())
    found = Found(
        ollama_url="",
        ollama_installed=True,
        ollama_answers=True,
        models=tuple(sorted(models, key=lambda m: m.billions)),
        services=(),
    )
    sections = setup.backends(found, paid=False)
    assert list(sections) == ["llama3-2-3b", "llama3-2", "phi-4", "qwen3-70b"]
    path = tmp_path / "config.toml"
    path.write_text(setup.config_text(sections, None, whole=True))
    tiers = config.load(path).models.tiers
    assert (tiers["fast"][0], tiers["balanced"][0], tiers["capable"][0]) == (
        "llama3-2-3b",
        "phi-4",
        "qwen3-70b",
    )


# --- pull ---------------------------------------------------------------------------------------------------


async def test_pull_says_how_it_goes_and_prints_the_name(home: Daemon) -> None:
    async with OllamaDouble(models={}) as ollama:
        home.environ["OLLAMA_HOST"] = ollama.url

        def work() -> Done:
            with home:
                return home.ctl("model", "pull", "small")

        done = await ran(work)
        assert list(ollama.models) == ["small"]
    assert (done.returncode, done.stdout) == (0, "small\n")
    assert done.stderr == "pulling manifest\npulling aa (2 MB)\nverifying sha256 digest\nsuccess\n"


async def test_pull_shows_a_bar_on_a_terminal(double: Double, ctl: Ctl, on_terminal: OnTerminal) -> None:
    async with OllamaDouble(models={}) as ollama:
        double.answers["model.list"] = lambda params, connection: {"backends": []}
        ctl.env["OLLAMA_HOST"] = ollama.url
        status, shown = await anyio.to_thread.run_sync(
            lambda: on_terminal(ctl, "model", "pull", "small", columns=120).end()
        )
    assert status == 0
    assert "pulling aa" in shown and "2.0/2.0 MB" in shown and "small is there" in shown


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        (Script(error="pull model manifest: file does not exist"), 66, "Ollama's library has no `nothing`"),
        (Script(error="max retries exceeded"), 1, "`nothing` was not pulled: max retries exceeded"),
        (Script(fault="unfinished"), 1, "broke off before all was there"),
        (Script(status=500), 1, "`nothing` was not pulled: no"),
    ],
)
async def test_a_pull_that_fails_says_why(
    double: Double, ctl: Ctl, script: Script, status: int, says: str
) -> None:
    async with OllamaDouble(script) as ollama:
        listed: dict[str, Any] = {
            "name": "o",
            "kind": "ollama",
            "model": "m",
            "url": ollama.url,
            "local": True,
        }
        listed |= {"tiers": [], "state": "up", "reason": None, "slots": 1, "in_flight": 0}
        listed |= {"price_in": 0.0, "price_out": 0.0}
        double.answers["model.list"] = lambda params, connection: {"backends": [listed]}
        done = await ran(lambda: ctl("model", "pull", "nothing"))
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr


def test_pull_without_an_ollama_says_what_to_do(double: Double, ctl: Ctl) -> None:
    double.answers["model.list"] = lambda params, connection: {"backends": []}
    done = ctl("model", "pull", "small", PATH="/nonexistent")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "aiosctl: no Ollama answers at http://127.0.0.1:9\n  try: aiosctl model setup\n"
    assert ctl("model", "pull", "").returncode == 2


# --- key ----------------------------------------------------------------------------------------------------


def test_a_key_is_kept_where_only_its_owner_reads_it(home: Daemon) -> None:
    file = home.home / "keys" / "cloud"
    for key in ("sk-first", "sk-second"):
        done = home.ctl("model", "key", "cloud", stdin=f"{key}\n".encode())
        assert (done.returncode, done.stdout) == (0, f'key_file = "{file}"\n')
        assert file.read_text() == f"{key}\n"
        assert key not in done.stdout + done.stderr
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)
    assert [each.name for each in file.parent.iterdir()] == ["cloud"]
    assert "[models.backends.cloud]" in done.stderr
    document = home.ctl("model", "key", "--json", "cloud", stdin=b"sk")
    assert json.loads(document.stdout) == {"key_file": str(file)}


@pytest.mark.parametrize("typed", [b"", b"\n", b"two words", b"two\nlines"])
def test_what_is_no_key_is_not_kept(home: Daemon, typed: bytes) -> None:
    assert home.ctl("model", "key", "cloud", stdin=typed).returncode == 2
    assert home.ctl("model", "key", "../cloud", stdin=b"sk").returncode == 2
    assert home.ctl("model", "key", "cloud").returncode == 2
    assert not (home.home / "keys").exists()


def test_a_key_typed_on_a_terminal_is_not_shown(ctl: Ctl, tmp_path: Path, on_terminal: OnTerminal) -> None:
    terminal = on_terminal(ctl, "model", "key", "cloud", columns=200)
    terminal.until("Key of cloud: ")
    terminal.type(b"sk-typed\n")
    status, shown = terminal.end()
    assert status == 0 and "sk-typed" not in shown
    assert (tmp_path / ".config/aiosd/keys/cloud").read_text() == "sk-typed\n"
