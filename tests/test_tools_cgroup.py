"""Control groups of tool hosts: what is decided. That they hold is tried in test_service.py, where systemd has some to give."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiosctl import doctor
from aiosd.tools import cgroup
from aiosd.tools.namespaces import Impossible

GIB = 1024**3
GROUP = "user.slice/user-1000.slice/user@1000.service/app.slice/aiosd.service"


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("0::/user.slice/user-1000.slice/session-2.scope\n", "/user.slice/user-1000.slice/session-2.scope"),
        ("4:memory:/user.slice\n1:name=systemd:/a\n0::/b:c\n", "/b:c"),
        ("4:memory:/user.slice\n1:name=systemd:/a\n", None),
        ("0::/\n", "/"),
        ("", None),
    ],
)
def test_the_group_of_a_process_is_that_of_version_2(text: str, group: str | None) -> None:
    assert cgroup.own(text) == group


@pytest.mark.parametrize(
    ("memory", "machine", "most"),
    [
        (4 * GIB, 64 * GIB, 5 * GIB),
        (4 * GIB, 8 * GIB, 4 * GIB),  # half of a small machine
        (64 * GIB, 16 * GIB, 8 * GIB),  # that of an MCP server is address space
    ],
)
def test_a_group_has_a_quarter_more_than_its_calls_and_at_most_half_of_the_machine(
    memory: int, machine: int, most: int
) -> None:
    limits = cgroup.limits(memory, machine)
    assert limits["memory.max"] == most
    assert (limits["memory.swap.max"], limits["memory.oom.group"]) == (0, 1)


@pytest.mark.parametrize(
    ("events", "kills"),
    [("low 0\nhigh 0\nmax 212\noom 3\noom_kill 9\noom_group_kill 1\n", 9), ("low 0\noom 0\n", 0), ("", 0)],
)
def test_kills_for_memory_are_counted(events: str, kills: int) -> None:
    assert cgroup.oom_kills(events) == kills


class Tree:
    """Folders that look like those of the kernel, with the daemon in `group`."""

    def __init__(self, mount: Path, group: str = GROUP, *, controllers: str = "cpu memory pids") -> None:
        self.mount = mount
        self.folder = mount / group
        self.folder.mkdir(parents=True)
        (mount / "cgroup.controllers").write_text("cpu io memory pids")
        (self.folder / "cgroup.controllers").write_text(controllers)
        self.has(7)

    def has(self, *pids: int) -> None:
        (self.folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_the_daemons_own_group_may_be_divided(tree: Tree) -> None:
    assert cgroup.candidate(tree.mount, f"0::/{GROUP}\n", 7) == tree.folder
    cgroup.divide(tree.folder, 7)
    assert (tree.folder / "daemon" / "cgroup.procs").read_text() == "7"
    assert (tree.folder / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_a_group_that_is_not_the_daemons_alone_stays_as_it_is(tree: Tree) -> None:
    tree.has(6, 7)
    with pytest.raises(Impossible, match="not alone in its group `/user.slice/"):
        cgroup.candidate(tree.mount, f"0::/{GROUP}\n", 7)
    tree.has(7)
    with pytest.raises(Impossible, match="is not its own"):  # a slice, or the root of a container
        cgroup.candidate(tree.mount, "0::/user.slice\n", 7)


def test_a_group_without_the_controllers_says_which(tmp_path: Path) -> None:
    tree = Tree(tmp_path, controllers="cpu")
    with pytest.raises(Impossible, match="has no memory and no pids controller"):
        cgroup.candidate(tree.mount, f"0::/{GROUP}\n", 7)


def test_without_version_2_nothing_is_looked_for(tree: Tree) -> None:
    with pytest.raises(Impossible, match="no cgroup version 2"):
        cgroup.candidate(tree.mount, "4:memory:/\n", 7)
    (tree.mount / "cgroup.controllers").unlink()
    with pytest.raises(Impossible, match="no cgroup version 2"):
        cgroup.candidate(tree.mount, f"0::/{GROUP}\n", 7)


def test_a_daemon_that_may_not_hand_controllers_on_goes_back(tree: Tree) -> None:
    (tree.folder / "cgroup.subtree_control").mkdir()
    with pytest.raises(OSError, match="directory"):
        cgroup.divide(tree.folder, 7)
    assert (tree.folder / "cgroup.procs").read_text() == "7"


@pytest.mark.parametrize(
    ("why", "unit", "state", "mends"),
    [
        ("", [], "ok", False),
        ("this machine has no cgroup version 2", [], "ok", False),
        ("not alone", ["MainPID=0", "Delegate=no"], "note", True),  # no service yet
        ("no `Delegate=`", ["Delegate=no", "MainPID=7"], "note", True),  # one of an older aiosd
        ("not alone", ["Delegate=yes", "MainPID=8"], "note", True),  # started by hand beside it
        ("no memory controller", ["Delegate=yes", "MainPID=7"], "ok", False),  # nothing that could be mended
    ],
)
def test_doctor_says_what_bounds_tools_and_what_would_bound_them_better(
    why: str, unit: list[str], state: str, mends: bool
) -> None:
    found = doctor._bounds(why, 7, unit)
    assert found.state == state and why in found.what
    assert (found.fix == "aiosctl service install && aiosctl service restart") == mends
