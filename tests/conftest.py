from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.aiosctl_double import Ctl, Double
from tests.daemon import Daemon
from tests.terminals import OnTerminal, Terminal

# Where the suite is started in the background SIGINT is ignored, and every child would inherit that. A signal with a
# handler is the default again in a child, so that a Ctrl-C which a test sends arrives.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon as a new user has it: no config, no model."""
    with Daemon(tmp_path / "home") as running:
        yield running


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    """The daemon's side of the wire, to make faults with."""
    with Double(tmp_path / "s") as running:
        yield running


@pytest.fixture
def ctl(tmp_path: Path) -> Ctl:
    """aiosctl, pointed at the double."""
    return Ctl(tmp_path, tmp_path / "s")


@pytest.fixture
def on_terminal() -> Iterator[OnTerminal]:
    """aiosctl on terminals, which end with the test."""
    with ExitStack() as open_terminals:
        yield lambda *args, **rest: open_terminals.enter_context(Terminal(*args, **rest))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of llama.cpp that writes noise, and calls a tool where it is given some."""
    from tests import make_gguf  # late: what it needs takes long to import, and most tests need no model

    return make_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
