"""The process that holds a GGUF model: `python -m aiosd.models.gguf_server`, a child of the daemon. The one home of
the `xllamacpp` package, which is llama.cpp with its own HTTP server.

It loads one model when it is told to over its line, and is then spoken to over HTTP on loopback. llama.cpp ends its
process where an assertion fails: that is why this is not the daemon's.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from aiosd import stdio

if TYPE_CHECKING:
    import xllamacpp

WARNINGS = 2
"""llama.cpp's verbosity: what it says goes into the daemon's log, and says nothing of the prompts."""
PROMPTS_MIB = 512
"""Of earlier prompts, kept so that a session that comes back is not read anew. llama.cpp would take 8 GiB."""


class Server:
    """The methods of the line."""

    def __init__(self) -> None:
        self._running: xllamacpp.Server | None = None

    def load(self, *, path: str, context: int, slots: int, key: str) -> str:
        """The address, once the model there takes requests with this key. Ends the process where it does not load:
        llama.cpp has said on stderr why."""
        import xllamacpp  # late: the line has to be open by then

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_parallel = slots
        params.n_ctx = context * slots  # it is divided among them
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
        params.hostnames = ["127.0.0.1"]
        params.port = 0  # the kernel chooses one that is free
        params.api_keys = [key]
        params.cors_origins = ""  # no page in a browser is meant
        params.cache_ram_mib = PROMPTS_MIB
        params.offline = True
        params.ui = False
        params.verbosity = WARNINGS
        try:
            self._running = xllamacpp.Server(params)
        except RuntimeError as exc:
            raise SystemExit(1) from exc
        return str(self._running.listening_address)


def _threads() -> int:
    """One for each core, and one core left where that is all of them.

    They wait for each other by spinning: where they have the whole machine, its other programs wait, and so does
    llama.cpp's own server. Measured on 2 cores, a closed stream freed its slot after up to 2.2 s; with this, 10 ms.
    """
    usable = os.sched_getaffinity(0)
    cores = {_core(number) for number in usable}
    return max(1, min(len(cores), len(usable) - 1))


def _core(number: int) -> str:
    """The processors that share a core with this one; alone where the kernel does not say."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{number}/topology/core_cpus_list").read_text()
    except OSError:
        return str(number)


def main() -> None:
    line = stdio.open_line()
    # systemd tells every process of the service at once. The daemon ends us, after what it still has to do.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What a model was told would be in it, and writing gigabytes would hold up the next process.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stdio.serve({"load": Server().load}, line)


if __name__ == "__main__":
    main()
