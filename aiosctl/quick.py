"""`ping` and `run TASK`, the commands that scripts call in loops, without what the others need.

Typer and msgspec cost five times what Python itself takes to start. So these two, spelt exactly like that and with nobody
watching, are asked here with `_socket` and `_json`: the halves in C of `socket` and `json`, which cost as much again. All
else goes the ordinary way: options, a terminal, input on stdin, no daemon, an error. A run that turns out to need
more than its answer printed (a tool call, a quote, Ctrl-C) is handed over as it stands, with its connection.
"""

from __future__ import annotations

import os
import sys

TYPING = False
if TYPING:  # what type checkers read; `typing` itself would double the cost of a ping
    from typing import Any, NoReturn

PING_S = 1.0
"""Seconds for a pong, before the ordinary way asks once more and tells what is wrong."""
CALL_S = 60.0
"""Seconds for a session; a run has the time it takes."""

MAX_LINE = 8 * 1024 * 1024
"""As in aiosd.framing."""
TITLE_CHARS = 48
ASIDE_CHARS = 100
"""Of a tool's arguments or a source, in the lines beside the answer."""


class Ordinary(Exception):
    """Not for here, and nothing has been done yet that may not be done again."""


class Handed:
    """A session.run that was sent, as it stands: the ordinary way goes on with it."""

    def __init__(self, fd: int, path: str, request_id: int) -> None:
        self.fd = fd
        self.path = path
        self.request_id = request_id
        self.received = b""
        """All that came in answer, but for deltas."""
        self.interrupted = False
        """Ctrl-C was pressed."""


def main() -> NoReturn:
    """The command line of this process."""
    try:
        done = answered(sys.argv[1:])
    except Ordinary:
        done = None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if isinstance(done, int):
        raise SystemExit(done)
    from aiosctl.main import main as ordinary  # late: it is what this file does without

    ordinary(done)


def answered(argv: list[str]) -> int | Handed:
    """The exit status, or a run that is to be gone on with. Raises Ordinary."""
    if not hot(argv):
        raise Ordinary
    path = socket_path(os.environ)
    if path is None or not _unwatched():
        raise Ordinary
    _end_with_the_reader()
    try:
        from _json import make_scanner as _  # noqa: F401 -- another Python may lack it
        from _socket import AF_UNIX, SOCK_STREAM, socket

    except ImportError as exc:
        raise Ordinary from exc
    sock = socket(AF_UNIX, SOCK_STREAM)
    try:
        sock.settimeout(CALL_S)
        sock.connect(path)
        connection = Connection(sock, path)
        return _ping(connection) if argv == ["ping"] else _run(connection, argv[1])
    except (OSError, ValueError, LookupError, TypeError) as exc:
        # No daemon, or one that says what we do not know: the ordinary way has a sentence for each.
        raise Ordinary from exc
    finally:
        sock.close()


def hot(argv: list[str]) -> bool:
    """`ping`, or `run TASK` with a task that nobody could take for an option."""
    return argv == ["ping"] or (
        len(argv) == 2 and argv[0] == "run" and not argv[1].startswith("-") and bool(argv[1].strip())
    )


def socket_path(environ: os._Environ[str] | dict[str, str]) -> str | None:
    """As `aiosd.paths.socket_path`; None where that asks platformdirs."""
    if named := environ.get("AIOSD_SOCKET"):
        return named
    if home := environ.get("AIOSD_HOME"):
        return os.path.join(home, "run", "aiosd.sock")
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "aiosd", "aiosd.sock")
    return None


def here() -> str | None:
    """The current folder as a session's workspace.

    None where there is none, and for the home folder and the root, which no session is given.
    """
    try:
        folder = os.getcwdb().decode()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return None if os.path.realpath(folder) in ("/", os.path.realpath(os.path.expanduser("~"))) else folder


def title(words: str) -> str:
    """The first words of a task, as a name for its session."""
    line = " ".join(words[: 4 * TITLE_CHARS].split())
    if len(line) <= TITLE_CHARS:
        return line
    cut = line[:TITLE_CHARS]
    return cut.rpartition(" ")[0] or cut


def aside_line(text: str) -> str:
    """In one line that is not too long."""
    text = " ".join(text.split())
    return text if len(text) <= ASIDE_CHARS else text[: ASIDE_CHARS - 1] + "…"


def _unwatched() -> bool:
    """No terminal sees us, and nothing but a device (/dev/null) is on standard input: that may be the task's."""
    try:
        modes = [os.fstat(fd).st_mode for fd in (0, 1, 2)]
    except OSError:
        return False  # one of them is closed
    return (modes[0] & 0o170000) == 0o020000 and not os.isatty(1) and not os.isatty(2)


def _end_with_the_reader() -> None:
    """As any program of a pipe: quietly, when nobody reads on."""
    import _signal  # type: ignore[import-not-found]  # `signal` without its enums

    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)


class Connection:
    """Lines to the daemon and back."""

    def __init__(self, sock: Any, path: str) -> None:
        self.socket = sock
        self.path = path
        self.unread = b""
        self._last_id = 0
        self.sent = 0
        """The last request that went out."""

    def send(self, method: str, **params: str | bool | None) -> int:
        """The request's id. What is None is left out."""
        self._last_id += 1
        given = ",".join(f'"{name}":{_json(value)}' for name, value in params.items() if value is not None)
        line = f'{{"jsonrpc":"2.0","id":{self._last_id},"method":"{method}","params":{{{given}}}}}\n'
        data = line.encode()
        from _socket import MSG_NOSIGNAL

        self.sent = self._last_id  # first: Ctrl-C may come as soon as it is
        self.socket.sendall(data, MSG_NOSIGNAL)  # SIGPIPE tells of our reader, not of the daemon
        return self._last_id

    def line(self) -> bytes:
        """The first line of what is unread. Raises LookupError when the daemon closes, ValueError for one too long."""
        while b"\n" not in self.unread:
            if len(self.unread) > MAX_LINE:
                raise ValueError("too long")
            data = self.socket.recv(1 << 16)
            if not data:
                raise LookupError("closed")
            self.unread += data
        return self.unread[: self.unread.index(b"\n") + 1]

    def pass_over(self, line: bytes) -> None:
        self.unread = self.unread[len(line) :]

    def result(self, request_id: int) -> Any:
        """Of the one request that is open. Raises LookupError for an error, ValueError for another's answer."""
        line = self.line()
        answer = _decoded(line)
        if answer["id"] != request_id:
            raise ValueError("another's answer")
        self.pass_over(line)
        return answer["result"]


def _json(value: str | bool) -> str:
    from _json import encode_basestring_ascii

    return ("false", "true")[value] if isinstance(value, bool) else str(encode_basestring_ascii(value))


class _Context:
    """What the scanner asks of a decoder: JSON as it is."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def _decoded(line: bytes) -> Any:
    """A message. Raises ValueError for what is no JSON."""
    from _json import make_scanner

    try:
        return make_scanner(_Context)(line.decode(), 0)[0]  # type: ignore[arg-type]  # it has what is asked for
    except (StopIteration, RecursionError):
        raise ValueError("not JSON") from None


def _ping(connection: Connection) -> int:
    connection.socket.settimeout(PING_S)
    pong = connection.result(connection.send("system.ping"))
    _write(1, f"aiosd {pong['version']} (pid {pong['pid']})\n")
    return 0


def _run(connection: Connection, given: str) -> int | Handed:
    task = os.fsencode(given).decode().strip()  # the locale may be C, what we are given is not
    asked = connection.send("session.create", title=title(task), workspace=here())
    session_id = connection.result(asked)["session_id"]
    connection.socket.settimeout(None)
    handed = Handed(connection.socket.fileno(), connection.path, asked + 1)
    try:
        request_id = connection.send("session.run", session_id=session_id, task=task, stream=True)
        while True:
            line = connection.line()
            message = _decoded(line)
            if message.get("method"):
                if message["params"]["kind"] not in ("text", "thinking"):
                    if not _is_silent(message["params"]):
                        break
                    handed.received += line
                connection.pass_over(line)
            elif message["id"] == request_id and _is_plain(answer := message["result"]):
                _write(1, answer["result"] + "\n")
                for source in answer["sources"]:
                    _write(2, aside_line(f"{source['kind']} {source['ref']}: {source['text']}") + "\n")
                return 0
            else:
                break
    except KeyboardInterrupt:
        if connection.sent < handed.request_id:
            raise
        handed.interrupted = True
    except (OSError, ValueError, LookupError, TypeError):
        pass  # what came is handed over; what is wrong with it is found there
    handed.received += connection.unread
    handed.fd = os.dup(handed.fd)  # the socket closes its own
    return handed


def _is_silent(event: Any) -> bool:
    """Whether nothing is printed for it where nobody watches."""
    kind = event["kind"]
    return kind in ("state", "route", "message", "usage") or (
        kind == "progress" and event["stage"] != "loading"
    )


def _is_plain(result: Any) -> bool:
    """Whether the answer is all that there is to print, with its sources."""
    decision = result["decision"]
    return (
        isinstance(result["result"], str)
        and result["generated"]
        and not result["abstained"]
        and result["stop_reason"] == "end_turn"
        and not result["cost_usd"]
        and not (decision and (decision["truncated"] or decision["dropped"]))
    )


def _write(fd: int, text: str) -> None:
    left = text.encode(errors="replace")
    while left:
        left = left[os.write(fd, left) :]
