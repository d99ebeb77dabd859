"""`aiosd`, or `python -m aiosd`: argv, config, logging; then the daemon."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
from typing import NoReturn

import msgspec

from aiosd import config, telemetry
from aiosd.errors import AiosError
from aiosd.paths import paths, socket_path


def main() -> None:
    parser = argparse.ArgumentParser(prog="aiosd", description="The aiosd daemon. aiosctl talks to it.")
    parser.add_argument("--socket", metavar="PATH", help="where to listen (default: as aiosctl looks for it)")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--check-config", action="store_true", help="print the config as it holds, and end")
    options = parser.parse_args()
    telemetry.log_to(sys.stderr, options.log_level.upper(), os.environ)
    faulthandler.enable()  # where every thread stands when a watchdog ends us by SIGABRT
    try:
        if options.check_config:
            sys.stdout.write(msgspec.json.encode(config.load(paths().config)).decode() + "\n")
        else:
            _run(options.socket)
    except AiosError as exc:
        _end(exc)
    except BaseExceptionGroup as group:  # of what was open already
        if not isinstance(foreseen := _only(group), AiosError):
            raise
        _end(foreseen)


def _only(exc: BaseException) -> BaseException:
    """What is in a group of one, and of one in that."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _end(exc: AiosError) -> NoReturn:
    logging.getLogger("aiosd").error("%s", exc, extra={"hint": exc.hint} if exc.hint else {})
    sys.exit(exc.exit_status)


def _run(socket: str | None) -> None:
    where = paths()
    settings = config.load(where.config)  # before the heavy imports: a bad config is told at once
    import anyio

    from aiosd import daemon

    os.umask(0o077)
    anyio.run(daemon.serve, settings, where, socket_path(socket), dict(os.environ))


if __name__ == "__main__":
    main()
