"""The doors, driven as any client drives them: bytes into a real Unix socket, bytes out."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from hypothesis import given
from hypothesis import strategies as st

from aiosd import framing
from aiosd.errors import NotFound, from_wire
from aiosd.framing import MAX_LINE
from aiosd.server import Method, Peer, Server, inline

pytestmark = pytest.mark.anyio


class Stage:
    """Methods under test that wait until the test lets them go."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.entered = anyio.Event()
        self.go = anyio.Event()
        self.ended = anyio.Event()

    def methods(self) -> dict[str, Method]:
        @inline
        async def subtract(peer: Peer, minuend: int, subtrahend: int) -> int:
            return minuend - subtrahend

        async def total(peer: Peer, *numbers: int) -> int:
            return sum(numbers)

        async def hear(peer: Peer, *args: object) -> None:
            self.heard.append(args)

        async def get_data(peer: Peer) -> list[object]:
            return ["hello", 5]

        async def wait(peer: Peer) -> str:
            self.entered.set()
            try:
                await self.go.wait()
            finally:
                self.ended.set()
            return "went"

        async def bug(peer: Peer) -> None:
            raise ZeroDivisionError("the secret of the bug")

        async def missing(peer: Peer) -> None:
            raise NotFound("no session 7", hint="aiosctl session list")

        async def unserialisable(peer: Peer) -> object:
            return object()

        async def flood(peer: Peer, lines: int, size: int) -> str:
            self.entered.set()
            try:
                for i in range(lines):
                    await peer.notify("line", {"i": i, "text": "x" * size})
            finally:
                self.ended.set()
            return "flooded"

        return {
            "subtract": subtract,
            "sum": total,
            "update": hear,
            "notify_sum": hear,
            "notify_hello": hear,
            "get_data": get_data,
            "wait": wait,
            "bug": bug,
            "missing": missing,
            "unserialisable": unserialisable,
            "flood": flood,
        }


@asynccontextmanager
async def serving(path: Path, stage: Stage, **options: Any) -> AsyncIterator[None]:
    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(Server(stage.methods(), **options).serve, listener)
        with anyio.fail_after(30):
            yield
        tasks.cancel_scope.cancel()


async def until_closed(stream: SocketStream) -> bytes:
    data = bytearray()
    async for piece in stream:
        data += piece
    return bytes(data)


async def ask(path: Path, data: bytes) -> bytes:
    """All that comes back for these bytes, as `nc -N` would show it."""
    async with await anyio.connect_unix(path) as stream:
        await stream.send(data)
        await stream.send_eof()
        return await until_closed(stream)


async def line(stream: SocketStream, rest: bytearray) -> Any:
    while b"\n" not in rest:
        rest += await stream.receive()
    end = rest.index(b"\n")
    found = json.loads(rest[:end])
    del rest[: end + 1]
    return found


SECTION_7 = [
    (
        "positional parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        '{"jsonrpc": "2.0", "result": 19, "id": 1}',
    ),
    (
        "positional parameters, the other way round",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        '{"jsonrpc": "2.0", "result": -19, "id": 2}',
    ),
    (
        "named parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        '{"jsonrpc": "2.0", "result": 19, "id": 3}',
    ),
    (
        "named parameters in another order",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        '{"jsonrpc": "2.0", "result": 19, "id": 4}',
    ),
    ("a notification", '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', None),
    ("a notification of an unknown method", '{"jsonrpc": "2.0", "method": "foobar"}', None),
    (
        "a non-existent method",
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        '{"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "1"}',
    ),
    (
        "invalid JSON",
        '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}',
    ),
    (
        "an invalid Request object",
        '{"jsonrpc": "2.0", "method": 1, "params": "bar"}',
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}',
    ),
    (
        "a batch, invalid JSON",
        '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},{"jsonrpc": "2.0", "method"]',
        '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}',
    ),
    (
        "an empty array",
        "[]",
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}',
    ),
    (
        "an invalid batch, but not empty",
        "[1]",
        '[{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}]',
    ),
    (
        "an invalid batch",
        "[1,2,3]",
        (
            '[{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},'
            '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},'
            '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}]'
        ),
    ),
    (
        "a batch",
        (
            '[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},'
            '{"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},'
            '{"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},'
            '{"foo": "boo"},'
            '{"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},'
            '{"jsonrpc": "2.0", "method": "get_data", "id": "9"}]'
        ),
        (
            '[{"jsonrpc": "2.0", "result": 7, "id": "1"},'
            '{"jsonrpc": "2.0", "result": 19, "id": "2"},'
            '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},'
            '{"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "5"},'
            '{"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"}]'
        ),
    ),
    (
        "a batch, all notifications",
        (
            '[{"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},'
            '{"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}]'
        ),
        None,
    ),
]


@pytest.mark.parametrize(
    ("sent", "expected"), [case[1:] for case in SECTION_7], ids=[c[0] for c in SECTION_7]
)
async def test_the_examples_of_section_7_are_answered_exactly(
    tmp_path: Path, sent: str, expected: str | None
) -> None:
    async with serving(tmp_path / "s", Stage()):
        got = await ask(tmp_path / "s", sent.encode() + b"\n")
    if expected is None:
        assert got == b""
    else:
        assert json.loads(got) == json.loads(expected)


async def test_an_unknown_parameter_is_named(tmp_path: Path) -> None:
    request = framing.request(1, "subtract", {"minuend": 1, "subtrahend": 1, "wrong": 1})
    async with serving(tmp_path / "s", Stage()):
        error = json.loads(await ask(tmp_path / "s", request))["error"]
    assert (error["code"], error["message"]) == (-32602, "Invalid params")
    assert "wrong" in error["data"]["detail"]


async def test_a_bug_is_logged_and_answered_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "s", Stage()):
        with caplog.at_level(logging.ERROR):
            answer = await ask(tmp_path / "s", framing.request(1, "bug", {}))
    assert json.loads(answer)["error"] == {"code": -32603, "message": "Internal error"}
    assert "the secret of the bug" in caplog.text


async def test_a_result_that_is_no_json_is_a_bug_of_ours(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", Stage()):
        answer = await ask(tmp_path / "s", framing.request(1, "unserialisable", {}))
    assert json.loads(answer) == {
        "jsonrpc": "2.0",
        "error": {"code": -32603, "message": "Internal error"},
        "id": 1,
    }


async def test_our_own_errors_arrive_as_the_class_that_was_raised(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", Stage()):
        answer = json.loads(await ask(tmp_path / "s", framing.request(1, "missing", {})))
    assert answer["error"] == {
        "code": -32002,
        "message": "no session 7",
        "data": {"hint": "aiosctl session list"},
    }
    raised = from_wire(answer["error"])
    assert (type(raised), str(raised), raised.hint) == (NotFound, "no session 7", "aiosctl session list")


async def test_a_request_waits_for_no_other(tmp_path: Path) -> None:
    stage = Stage()
    async with serving(tmp_path / "s", stage), await anyio.connect_unix(tmp_path / "s") as stream:
        rest = bytearray()
        await stream.send(framing.request("slow", "wait", {}) + framing.request("fast", "sum", [1]))
        assert (await line(stream, rest))["id"] == "fast"
        stage.go.set()
        assert (await line(stream, rest))["id"] == "slow"


async def test_a_half_closed_connection_is_still_answered(tmp_path: Path) -> None:
    stage = Stage()
    async with serving(tmp_path / "s", stage), await anyio.connect_unix(tmp_path / "s") as stream:
        await stream.send(framing.request(1, "wait", {}))
        await stream.send_eof()
        await stage.entered.wait()
        stage.go.set()
        assert json.loads(await until_closed(stream))["result"] == "went"


async def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", Stage()):
        answer = await ask(tmp_path / "s", framing.request(1, "sum", [1, 2]).rstrip(b"\n"))
    assert json.loads(answer)["result"] == 3


async def test_a_line_over_the_limit_is_answered_and_the_connection_closed(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", Stage()), await anyio.connect_unix(tmp_path / "s") as stream:
        rest = bytearray()
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            for _ in range(MAX_LINE // 65536 + 8):
                await stream.send(b"x" * 65536)
            while True:
                rest += await stream.receive()
        if rest:  # the answer may be lost when the peer still writes as we close
            assert json.loads(rest)["error"]["code"] == -32600
        assert json.loads(await ask(tmp_path / "s", framing.request(1, "sum", [1])))["result"] == 1


async def test_a_line_at_the_limit_is_read(tmp_path: Path) -> None:
    text = "x" * (MAX_LINE - 200)
    async with serving(tmp_path / "s", Stage()):
        answer = await ask(tmp_path / "s", framing.request(1, "update", [text]))
    assert json.loads(answer)["result"] is None


async def test_a_reader_that_stops_reading_is_closed_and_costs_nobody_else(tmp_path: Path) -> None:
    stage = Stage()
    async with (
        serving(tmp_path / "s", stage, outbox=64 * 1024, stall_s=0.2),
        await anyio.connect_unix(tmp_path / "s") as deaf,
    ):
        await deaf.send(framing.request(1, "flood", {"lines": 100_000, "size": 1000}))
        await stage.entered.wait()
        answer = await ask(tmp_path / "s", framing.request(1, "sum", [1]))
        assert json.loads(answer)["result"] == 1
        await stage.ended.wait()
        got = await until_closed(deaf)
    assert len(got) < 10_000_000
    assert b"flooded" not in got


async def test_a_reader_that_stalls_before_two_million_lines_costs_a_megabyte_at_most(tmp_path: Path) -> None:
    stage = Stage()
    async with serving(tmp_path / "s", stage), await anyio.connect_unix(tmp_path / "s") as deaf:
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            await deaf.send(framing.request(1, "flood", {"lines": 2_000_000, "size": 40}))
            await stage.entered.wait()
            for i in range(200):  # meanwhile it writes as far as it can, and others are answered
                assert json.loads(await ask(tmp_path / "s", framing.request(i, "sum", [i])))["result"] == i
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most - before <= 1_000_000


async def test_more_requests_than_may_be_open_are_answered_overloaded(tmp_path: Path) -> None:
    stage = Stage()
    async with serving(tmp_path / "s", stage), await anyio.connect_unix(tmp_path / "s") as stream:
        await stream.send(b"".join(framing.request(i, "wait", {}) for i in range(1025)))
        answer = await line(stream, bytearray())
        stage.go.set()
    assert (answer["id"], answer["error"]["code"]) == (1024, -32001)


async def test_a_client_that_goes_away_ends_its_requests(tmp_path: Path) -> None:
    stage = Stage()
    async with serving(tmp_path / "s", stage):
        stream = await anyio.connect_unix(tmp_path / "s")
        await stream.send(framing.request(1, "flood", {"lines": 1_000_000_000, "size": 10}))
        await stage.entered.wait()
        await stream.aclose()
        assert json.loads(await ask(tmp_path / "s", framing.request(1, "sum", [1])))["result"] == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_refused() -> None:
    def connect_as(uid: int, address: str) -> socket.socket:
        """A connection whose SO_PEERCRED is somebody else's: the kernel keeps what connect() saw."""
        raw = socket.socket(socket.AF_UNIX)
        os.seteuid(uid)
        try:
            raw.connect(address)
        finally:
            os.seteuid(0)
        return raw

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        async with serving(Path(folder, "s"), Stage()):
            os.chmod(f"{folder}/s", 0o777)
            with connect_as(65534, f"{folder}/s") as raw:
                raw.setblocking(False)
                await anyio.wait_readable(raw)
                assert raw.recv(1) == b""


PIECES = st.binary(max_size=6) | st.sampled_from([b"\n", b"  \n", b"[]\n", framing.request(1, "a", [1])])


@given(st.lists(PIECES, max_size=8), st.integers(1, 80))
async def test_how_bytes_are_cut_changes_nothing_of_what_they_say(pieces: list[bytes], max_line: int) -> None:
    def said(parts: Iterable[bytes]) -> list[str]:
        decoder, found = framing.Decoder(max_line), list[framing.Message]()
        try:
            for part in parts:
                found += decoder.feed(part)
            found += decoder.end()
        except framing.LineTooLong as exc:
            found.append(exc)
        return [re.sub(" at 0x[0-9a-f]+", "", repr(message)) for message in found]

    whole = b"".join(pieces)
    assert said(pieces) == said([whole]) == said(whole[i : i + 1] for i in range(len(whole)))


@pytest.mark.parametrize("cut", range(1, 60, 3))
async def test_a_message_cut_anywhere_decodes_once_whole(cut: int) -> None:
    whole = framing.request(7, "session.run", {"task": "hi \N{SNOWMAN}"})
    decoder = framing.Decoder()
    assert list(decoder.feed(whole[:cut])) == []
    (request,) = decoder.feed(whole[cut:])
    assert isinstance(request, framing.Request)
    assert (request.id, request.method) == (7, "session.run")


@pytest.mark.parametrize(
    "bad",
    [
        b'{"id":1,"method":"x"}',
        b'{"jsonrpc":"1.0","id":1,"method":"x"}',
        b'{"jsonrpc":"2.0","id":true,"method":"x"}',
        b'{"jsonrpc":"2.0","id":{},"method":"x"}',
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":3}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":""}}',
        b"7",
        b'"text"',
    ],
)
async def test_json_that_is_no_message_is_an_invalid_request(tmp_path: Path, bad: bytes) -> None:
    async with serving(tmp_path / "s", Stage()):
        answers = await ask(tmp_path / "s", bad + b"\n" + framing.request(2, "sum", [1]))
    first, second = answers.splitlines()
    assert json.loads(first)["error"]["code"] == -32600
    assert json.loads(second)["result"] == 1


async def test_a_result_that_has_a_method_key_is_still_a_response() -> None:
    (message,) = framing.Decoder().feed(framing.result(1, {"method": "session.run"}) + b"\n")
    assert isinstance(message, framing.Response)
