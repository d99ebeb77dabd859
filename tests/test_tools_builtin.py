"""The builtin tools as functions; that they also work through a host is in test_tools_host.py."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd.records import Command
from aiosd.tools import builtin, commands, results, ripgrep, syscalls, workspace
from aiosd.tools.builtin import (
    clock,
    edit_file,
    list_files,
    read_file,
    run_command,
    search_files,
    write_file,
)
from aiosd.tools.calculator import calculate


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("12 * 7", "84"),
        ("168 / 2", "84"),
        ("7 / 2", "3.5"),
        ("1 / 3", "0.333333333333333"),
        ("0.1 + 0.2", "0.3"),
        ("84.0", "84"),
        ("2 ** 64", "18446744073709551616"),
        ("2 ** -1", "0.5"),
        ("2 ** 0.5", "1.4142135623731"),
        ("-2 ** 2", "-4"),
        ("(-1) ** 3", "-1"),
        ("(-1) ** 1000000000000", "1"),
        ("1 ** 99999999999", "1"),
        ("0 ** 99999999999", "0"),
        ("0 ** 0", "1"),
        ("7 // 2 + 7 % 4", "6"),
        ("-7 // 2", "-4"),
        ("+(3 - -4) * 2", "14"),
        ("sqrt(144)", "12"),
        ("sqrt(2)", "1.4142135623731"),
        ("round(2.567, 1)", "2.6"),
        ("round(1234, -2)", "1200"),
        ("abs(-3) + min(4, 2, 8) + max(1)", "6"),
        ("pi", "3.14159265358979"),
        ("2 * e", "5.43656365691809"),
        ("1e300 * 10", "1e+301"),
        (" 1 +\n1 ", None),
        ("(1 +\n1)", "2"),
        ("1_000 + 1", "1001"),
        ("10 ** 400 / 10 ** 399", "10"),
    ],
)
def test_the_calculator_computes(expression: str, answer: str | None) -> None:
    if answer is None:
        with pytest.raises(ValueError):
            calculate(expression)
    else:
        assert calculate(expression) == answer.replace("1.4142135623731", calculate("sqrt(2)"))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("9 ** 9 ** 9", "passes 10000 bits"),
        ("2 ** 10 ** 10 ** 10", "passes 10000 bits"),
        ("(2 ** 9999) * (2 ** 9999)", "passes 10000 bits"),
        ("(-9) ** 99999999999999999999", "passes 10000 bits"),
        ("1e308 * 10", "too large"),
        ("1e999", "too large"),
        ("10.0 ** 400", "too large"),
        ("10 ** 400 / 3", "too large"),
        ("10 ** 400 + 0.5", "too large"),
        ("1 / 0", "division by zero"),
        ("1 // 0", "zero"),
        ("1 % 0", "zero"),
        ("0 ** -1", "divides by zero"),
        ("(-8) ** 0.5", "not a real number"),
        ("sqrt(-1)", "not a real number"),
        ("2 ^ 8", r"a power is `\*\*`"),
        ("__import__('os').system('id')", "is not arithmetic"),
        ("().__class__", "is not arithmetic"),
        ("[1, 2]", "is not arithmetic"),
        ("1 if 1 else 2", "is not arithmetic"),
        ("(lambda: 1)()", "is not arithmetic"),
        ("True + 1", "is not arithmetic"),
        ("'a' * 9", "is not arithmetic"),
        ("1j", "is not arithmetic"),
        ("1 < 2", "is not arithmetic"),
        ("~1", "is not arithmetic"),
        ("min(*[1])", "is not arithmetic"),
        ("round(1.5, ndigits=1)", "is not arithmetic"),
        ("open", "`open` is not known"),
        ("min()", "does not take 0 arguments"),
        ("sqrt(1, 2)", "does not take 2 arguments"),
        ("round(1, 10 ** 9)", "at most 400"),
        ("round(1.5, 1.5)", "at most 400"),
        ("", "not an expression"),
        ("2 +", "not an expression"),
        ("x = 1", "not an expression"),
        ("1; 2", "not an expression"),
        ("\0", "not an expression|null"),
        ("1" * 1001, "1001 characters"),
        ("(" * 400 + "1" + ")" * 400, "nested|not an expression"),
        ("-" * 990 + "1", "nested|not an expression"),
    ],
)
def test_the_calculator_refuses_at_once_with_a_sentence(expression: str, words: str) -> None:
    started = time.process_time()
    with pytest.raises((ValueError, ArithmeticError)) as caught:
        calculate(expression)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert time.process_time() - started < 1


@given(st.text(alphabet="0123456789.+-*/%() esqrtpiabmnx,", max_size=40))
def test_any_text_is_computed_or_refused(expression: str) -> None:
    try:
        answer = calculate(expression)
    except (ValueError, ArithmeticError) as exc:
        assert str(exc)
    else:
        assert float(answer) is not None


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12), st.sampled_from(["+", "-", "*"]))
def test_whole_numbers_are_exact(a: int, b: int, operator: str) -> None:
    assert calculate(f"{a} {operator} ({b})") == str({"+": a + b, "-": a - b, "*": a * b}[operator])


def test_the_clock_tells_time_zone_and_weekday() -> None:
    stamp, weekday = clock("UTC").split()
    told = datetime.fromisoformat(stamp)
    assert stamp.endswith("+00:00")
    assert f"{told:%A}" == weekday
    assert abs((told - datetime.fromisoformat(clock().split()[0])).total_seconds()) < 60


@pytest.mark.parametrize(
    "name", ["Mars/Base", "../../etc/passwd", "/etc/passwd", "", "Europe", "a\0b", "x" * 9999, "."]
)
def test_the_clock_refuses_what_is_no_time_zone(name: str) -> None:
    with pytest.raises(ValueError, match="no IANA time zone"):
        clock(name)


# --- files -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace that is the current folder, as in a host, beside a file that is none of its business."""
    (tmp_path / "secret.txt").write_text("the secret\n")
    folder = tmp_path / "workspace"
    (folder / "docs").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "README.md").write_text("one\ntwo Needle\nthree\n")
    (folder / "docs" / "guide.md").write_text("a needle here\r\nb\r\n")
    (folder / ".git" / "config").write_text("needle\n")
    (folder / "blob.bin").write_bytes(b"needle\0\1\2")
    monkeypatch.chdir(folder)
    return folder


def test_a_file_is_read_whole_or_from_a_line_on(folder: Path) -> None:
    assert read_file("README.md") == "one\ntwo Needle\nthree"
    assert read_file("./docs/../README.md", offset=3) == "three"
    assert read_file(str(folder / "README.md"), offset=2, limit=1) == (
        "two Needle\n[lines 2 to 2 of 3; go on with offset=3]"
    )
    (folder / "empty").touch()
    assert read_file("empty") == "[`empty` is empty]"


def test_an_offset_behind_the_end_says_how_long_the_file_is(folder: Path) -> None:
    with pytest.raises(ValueError, match="has 3 lines"):
        read_file("README.md", offset=4)


def test_a_long_file_is_cut_between_lines_and_says_where_to_go_on(folder: Path) -> None:
    (folder / "long").write_text("".join(f"{n} {'x' * 95}\n" for n in range(1, 3001)))
    text = read_file("long")
    *lines, note = text.split("\n")
    assert len(text) < builtin.MAX_TEXT * 1.1
    assert note == f"[lines 1 to {len(lines)} of 3000; go on with offset={len(lines) + 1}]"
    assert read_file("long", offset=len(lines) + 1, limit=1).startswith(f"{len(lines) + 1} ")


def test_one_endless_line_is_cut(folder: Path) -> None:
    (folder / "line").write_text("x" * 1_000_000)
    assert read_file("line").endswith("[... 940000 characters more]")


def not_in_this_kernel(name: str, *arguments: object) -> int:
    raise OSError(errno.ENOSYS, name)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "docs/../../secret.txt",
        "/etc/passwd",
        "/dev/zero",
        "..",
        "/",
        "link",
        "linked/secret.txt",
        "whole",
    ],
)
@pytest.mark.parametrize("openat2", [True, False], ids=["openat2", "none"])
def test_no_path_leads_out_of_the_workspace(
    folder: Path, path: str, openat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not openat2:
        monkeypatch.setattr(syscalls, "call", not_in_this_kernel)
    (folder / "link").symlink_to("../secret.txt")
    (folder / "linked").symlink_to("..")
    (folder / "whole").symlink_to(folder.parent / "secret.txt")
    for look in (read_file, list_files, lambda path: search_files("secret", path)):
        with pytest.raises(workspace.OutsideWorkspace, match="outside the workspace"):
            look(path)


def test_a_sibling_that_begins_with_the_workspaces_name_is_outside(folder: Path) -> None:
    (folder.parent / "workspace2").mkdir()
    (folder.parent / "workspace2" / "x").write_text("x")
    with pytest.raises(workspace.OutsideWorkspace):
        read_file("../workspace2/x")


def test_a_symlink_that_stays_inside_is_followed_when_named_but_not_in_walks(folder: Path) -> None:
    (folder / "link.md").symlink_to("docs/guide.md")
    (folder / "by its whole path").symlink_to(folder / "docs")
    (folder / "out").symlink_to("..")
    assert read_file("link.md") == "a needle here\nb"
    assert read_file("by its whole path/guide.md") == "a needle here\nb"
    assert list_files() == "README.md\nblob.bin\ndocs/guide.md"
    assert "secret" not in search_files("e")


def test_a_path_that_leaves_only_once_it_was_checked_still_does_not_lead_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.path.normpath

    def swap(path: str) -> str:
        """Between the check of the words and the opening, as a hostile process would."""
        if path.endswith("README.md"):
            (folder / "README.md").unlink(missing_ok=True)
            (folder / "README.md").symlink_to("../secret.txt")
        return real(path)

    monkeypatch.setattr(os.path, "normpath", swap)
    with pytest.raises(workspace.OutsideWorkspace):
        read_file("README.md")


def test_devices_pipes_folders_and_binaries_are_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for path, words in (
        ("pipe", "not a file"),
        ("docs", "is a folder"),
        ("blob.bin", "binary file of 9 bytes"),
    ):
        with pytest.raises(workspace.NotText, match=words):
            read_file(path)
    with pytest.raises(workspace.NotText, match="neither"):
        list_files("pipe")
    assert "pipe" not in list_files()
    assert search_files("needle", "docs") == "docs/guide.md:1: a needle here"


def test_what_is_not_there_or_not_a_path_is_said(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no `nothing` in the workspace"):
        read_file("nothing")
    with pytest.raises(workspace.NotText, match="NUL"):
        read_file("a\0b")
    with pytest.raises(OSError, match="too long"):
        read_file("x" * 5000)
    with pytest.raises(OSError, match="README.md/x"):
        read_file("README.md/x")


def test_a_huge_file_is_refused_and_passed_over(folder: Path) -> None:
    with (folder / "huge").open("wb") as file:
        file.write(b"needle\n" * 2000)
        file.truncate(10 * 1024**4)  # 10 TB, none of it written
    (folder / "huge.txt").write_bytes(b"needle\n" * (workspace.MAX_FILE // 7 + 1))
    with pytest.raises(workspace.NotText, match="has 10995116277760 bytes|binary"):
        read_file("huge")
    with pytest.raises(workspace.NotText, match="files up to 16777216 bytes"):
        read_file("huge.txt")
    assert "not searched, being too large or unreadable: 2 files" in search_files("needle")


def test_files_are_listed_by_name_or_path_and_hidden_folders_are_not(folder: Path) -> None:
    assert list_files(pattern="*.md") == "README.md\ndocs/guide.md"
    assert list_files(pattern="**/*.md") == "README.md\ndocs/guide.md"
    assert list_files(pattern="docs/*") == "docs/guide.md"
    assert list_files("docs") == "docs/guide.md"
    assert list_files("docs/guide.md") == "docs/guide.md"
    assert list_files(pattern="*.rs") == "[no file matches `*.rs`]"


def test_a_search_gives_path_line_and_text_in_any_case(folder: Path) -> None:
    assert search_files("NEEDLE").split("\n") == [
        "README.md:2: two Needle",
        "docs/guide.md:1: a needle here",
    ]
    assert search_files("(.*", "docs") == "[no line contains `(.*`]"


needs_rg = pytest.mark.skipif(shutil.which("rg") is None, reason="ripgrep is not installed")


def with_and_without(text: str, path: str = ".") -> tuple[str, str]:
    """What a search gives by ripgrep and by itself."""
    by_rg = search_files(text, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ripgrep, "files_with", lambda *args: None)
        return by_rg, search_files(text, path)


HOSTILE = (
    "-e",
    "--files",
    "a b",
    "new\nline",
    "*",
    "[x]",
    "\udcff\udcfe",
    "tab\t",
    "..a",
    "{b,c}",
    "!no",
    "\\d",
)


@needs_rg
@pytest.mark.parametrize("place", ["workspace", ".hidden/workspace"])
def test_with_ripgrep_a_search_gives_the_same(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / place
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("needle of others\n")
    for name in HOSTILE:
        (folder / f"{name}.d").mkdir(parents=True)
        (folder / name).write_text("the Needle\n")
        (folder / f"{name}.d" / name).write_text("no\nNEEDLE\n")
    kinds = {
        ".dot": b"needle",
        "crlf": b"a\r\nneedle\r\n\x0cneedle",
        "latin": b"caf\xe9 needle \xff\n",
        "bom": b"\xef\xbb\xbfneedle",
        "utf16": "needle".encode("utf-16"),
        "binary": b"needle\0",
        "late": b"x" * 9000 + b"\0needle",
        "long": b"y" * 100_000 + b"needle" + b"z" * 100_000,
        "kelvin": "\u212aelvin \u0130n \u017fum \u0131x".encode(),
        "empty": b"",
        ".gitignore": b"*\n",
        ".ignore": b"*\n",
        ".rgignore": b"*\n",
        "huge": b"needle" + b"\n" * workspace.MAX_FILE,
        "closed": b"needle",
    }
    for name, content in kinds.items():
        (folder / name).write_bytes(content)
    (folder / "closed").chmod(0)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("needle\n")
    (folder / "inside").symlink_to("a b.d")
    (folder / "link").symlink_to(outside / "x")
    (folder / "out").symlink_to(outside)
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    (tmp_path / "ripgreprc").write_text("--invert-match\n")
    monkeypatch.setenv("RIPGREP_CONFIG_PATH", str(tmp_path / "ripgreprc"))
    monkeypatch.chdir(folder)
    for text in (
        "needle",
        "the needle",
        "k",
        "i",
        "s",
        "sum",
        "kelvin",
        "in",
        "(.*",
        "\\",
        "\u0130",
        "e\n",
        "x",
    ):
        by_rg, alone = with_and_without(text)
        assert by_rg == alone, text
    for path in ("a b.d", "inside", "-e.d", "*", "late", ".git", str(folder / "a b")):
        by_rg, alone = with_and_without("needle", path)
        assert by_rg == alone, path
    found = search_files("needle")
    assert found.count("\n") > 2 * len(HOSTILE) and "others" not in found and ".git" not in found


@needs_rg
@given(
    files=st.dictionaries(
        st.text("ab.-*", min_size=1, max_size=4).filter(lambda name: name.strip(".")),
        st.lists(
            st.sampled_from(["ab", "AB", "aB\n", "\r\n", "\u0131", "\u212a", "k", "\xe9", "\0", "\x0c"])
        ).map("".join),
        max_size=4,
    ),
    text=st.text("aBkI*.\xe9", min_size=1, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_whatever_is_searched_ripgrep_changes_nothing(files: dict[str, str], text: str) -> None:
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, content in files.items():
            Path(name).write_text(content, newline="")
        by_rg, alone = with_and_without(text)
        assert by_rg == alone


@needs_rg
def test_what_ripgrep_says_is_in_no_line_of_a_file_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = workspace.read_at

    def watched(at: int, name: str) -> str:
        read.append(name)
        return real(at, name)

    monkeypatch.setattr(workspace, "read_at", watched)
    assert search_files("guide") == "[no line contains `guide`]"
    assert search_files("needle here") == "docs/guide.md:1: a needle here"
    assert read == ["guide.md"]


def test_python_takes_no_other_letters_for_ours_than_ripgrep_is_told_of() -> None:
    letters = re.compile("[a-z]", re.IGNORECASE)
    beyond = {chr(code) for code in range(128, sys.maxunicode + 1) if letters.fullmatch(chr(code))}
    assert beyond == set("".join(ripgrep.ALSO.values()))


def test_lists_and_searches_end_at_their_caps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1100):
        (folder / f"f{number:04}").write_text("hay\n")
    assert list_files().count("\n") == 1000
    assert list_files().endswith("narrower pattern]")
    assert search_files("hay").count(": hay\n") == 200
    monkeypatch.setattr(workspace, "MAX_VISITED", 50)
    assert list_files().endswith("[stopped after 50 files; name a folder]")
    assert "[stopped after 50 files; name a folder]" in search_files("nowhere")


def test_a_search_shows_the_part_of_a_long_line_that_matches(folder: Path) -> None:
    (folder / "min.js").write_text("a" * 100_000 + "findme" + "b" * 100_000)
    found = search_files("findme", "min.js")
    assert "findme" in found
    assert len(found) < 400


def test_a_very_deep_tree_and_odd_names_do_no_harm(folder: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        there = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    (folder / "a\nb:1: forged").write_text("needle\n")
    (folder / os.fsdecode(b"\xff.txt")).write_text("needle\n")
    listed = list_files()
    assert "a\N{REPLACEMENT CHARACTER}b:1: forged" in listed
    assert "\N{REPLACEMENT CHARACTER}.txt" in listed
    listed.encode()
    search_files("needle").encode()


# --- writing -----------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_with_its_folders_and_keeps_its_mode(folder: Path) -> None:
    assert write_file("new/deep/a.txt", "one\ntwo\n") == "wrote 2 lines to `new/deep/a.txt`"
    assert (folder / "new" / "deep" / "a.txt").read_text() == "one\ntwo\n"
    (folder / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "tool.sh").chmod(0o750)
    write_file("docs/../tool.sh", "#!/bin/sh\nexit\n")
    assert (folder / "tool.sh").stat().st_mode & 0o777 == 0o750
    assert sorted(os.listdir(folder / "new" / "deep")) == ["a.txt"]


@pytest.mark.parametrize("walked", [False, True])
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../secret.txt", workspace.OutsideWorkspace),
        ("/etc/passwd", workspace.OutsideWorkspace),
        ("out/secret.txt", workspace.OutsideWorkspace),
        ("out/new/secret.txt", workspace.OutsideWorkspace),
        ("root/tmp/x", workspace.OutsideWorkspace),
        ("link", workspace.NotText),
        ("docs", workspace.NotText),
        (".", workspace.NotText),
        ("", workspace.NotText),
        ("pipe", workspace.NotText),
        ("README.md/x", NotADirectoryError),
        ("a\0b", workspace.NotText),
    ],
)
def test_nothing_is_written_outside_of_the_workspace_or_over_what_is_no_file(
    folder: Path, path: str, error: type[Exception], walked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if walked:  # as on a kernel without openat2
        monkeypatch.setattr(syscalls, "call", not_in_this_kernel)
    (folder / "link").symlink_to("../secret.txt")
    (folder / "out").symlink_to("..")
    (folder / "root").symlink_to("/")
    os.mkfifo(folder / "pipe")
    with pytest.raises(error):
        write_file(path, "mine now")
    assert (folder.parent / "secret.txt").read_text() == "the secret\n"
    assert not [name for name in os.listdir(folder) if name.endswith("~")]
    assert not (folder.parent / "new").exists()


def test_an_edit_replaces_exactly_what_stands_there_once(folder: Path) -> None:
    assert edit_file("README.md", "two Needle", "2") == "replaced 1 place in `README.md`"
    assert (folder / "README.md").read_text() == "one\n2\nthree\n"
    (folder / "crlf").write_bytes(b"a\r\na\r\n")
    with pytest.raises(ValueError, match="2 times"):
        edit_file("crlf", "a", "b")
    assert edit_file("crlf", "a\r\n", "b\r\n", all=True) == "replaced 2 places in `crlf`"
    assert (folder / "crlf").read_bytes() == b"b\r\nb\r\n"
    with pytest.raises(ValueError, match="does not contain"):
        edit_file("README.md", "two", "3")
    (folder / "latin").write_bytes(b"caf\xe9 a\n")
    with pytest.raises(workspace.NotText, match="not all UTF-8"):
        edit_file("latin", "a", "b")
    assert (folder / "latin").read_bytes() == b"caf\xe9 a\n"
    with pytest.raises(workspace.OutsideWorkspace):
        edit_file("../secret.txt", "the", "no")


# --- programs ----------------------------------------------------------------------------------------------


def test_a_program_is_run_without_a_shell_and_tells_its_status(folder: Path) -> None:
    assert run_command(["echo", "$HOME; ls `id` *"]) == "$HOME; ls `id` *\n"
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 3"]) == "out\nerr\n[exit status 3]"
    assert run_command(["sh", "-c", "kill -9 $$"]) == "[killed by SIGKILL]"
    assert run_command(["cat"]) == ""  # there is nothing on its input
    for argv in (["no-such-program"], [""], ["a\0b"], [str(folder)]):
        with pytest.raises(ValueError, match="cannot be run"):
            run_command(argv)


def test_a_program_that_does_not_end_is_killed_with_all_it_started(folder: Path) -> None:
    script = "sleep 1000 & echo $! > pid; echo begun; wait"
    with pytest.raises(TimeoutError, match="begun"):
        run_command(["sh", "-c", script], timeout_s=0.5)
    pid = int((folder / "pid").read_text())
    with suppress(ProcessLookupError):  # it is gone already
        assert select.select([os.pidfd_open(pid)], [], [], 30)[0]
    # What it left running keeps neither the call nor its output.
    assert run_command(["sh", "-c", "sleep 1000 & echo done"]).endswith("done\n")


def test_of_a_long_output_the_beginning_and_the_end_are_kept(folder: Path) -> None:
    text = run_command(["seq", "1", "1000000"])
    assert text.startswith("1\n2\n") and text.endswith("\n1000000\n")
    assert re.search(r"\[\.\.\. \d+ bytes are left out \.\.\.\]", text)
    assert len(text) < results.MAX_KEPT


def test_a_command_of_the_config_fills_its_template_and_nothing_else(folder: Path) -> None:
    count = commands.function_of("count", Command(argv=("wc", "-w", "{path}"), permissions=("read",)))
    assert count(path="README.md").split() == ["4", "README.md"]
    nasty = "a b; rm -rf {path} $(id)"
    echo = commands.function_of("say", Command(argv=("printf", "%s|%s", "--x={text}", "{path}")))
    assert echo(text=nasty, path=nasty) == f"--x={nasty}|{nasty}"
    for value in ("--files0-from=/etc/passwd", "-", "-w"):
        with pytest.raises(ValueError, match="option"):
            count(path=value)
    with pytest.raises(ValueError, match="NUL"):
        count(path="a\0b")


# --- races -------------------------------------------------------------------------------------------------


def races(tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Reads and writes `turn/x` while another process swaps `turn` between a folder and a link out of the workspace.

    What came of each try, by its kind; a leak is one. Goes on until some were inside and some refused."""
    outside, folder = tmp_path / "outside", tmp_path / "workspace"
    for place in (outside, folder / "turn", folder / "other"):
        place.mkdir(parents=True)
        (place / "x").write_text("inside\n")
    (outside / "x").write_text("the secret\n")
    (folder / "link").symlink_to(outside)
    monkeypatch.chdir(folder)
    libc = "ctypes.CDLL(None).renameat2"
    swap = f"import ctypes\nprint('x', flush=True)\nwhile True: {libc}(-100, b'turn', -100, b'link', 2)"  # RENAME_EXCHANGE
    seen = {"inside": 0, "refused": 0, "leaked": 0}
    with subprocess.Popen([sys.executable, "-c", swap], stdout=subprocess.PIPE) as swapping:
        assert swapping.stdout is not None and swapping.stdout.readline() == b"x\n"
        try:
            until = time.monotonic() + 60
            for turn in count():
                if turn >= times and (seen["inside"] and seen["refused"] or time.monotonic() > until):
                    break
                try:
                    if turn % 2:
                        write_file("turn/x", "inside\n")
                        found = "inside"
                    else:
                        found = read_file("turn/x")
                except (workspace.OutsideWorkspace, OSError):
                    seen["refused"] += 1
                else:
                    seen["inside" if found == "inside" else "leaked"] += 1
        finally:
            swapping.kill()
    seen["leaked"] += (outside / "x").read_text() != "the secret\n" or len(os.listdir(outside)) != 1
    return seen


def test_a_path_that_is_swapped_all_the_while_leads_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = races(tmp_path, 1000, monkeypatch)
    assert seen["leaked"] == 0 and seen["inside"] and seen["refused"], seen


@pytest.mark.slow
def test_twenty_thousand_swaps_leak_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = races(tmp_path, 20_000, monkeypatch)
    assert seen["leaked"] == 0 and seen["inside"] and seen["refused"], seen
