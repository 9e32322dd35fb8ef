"""Nothing of a replica outlives it, its guardian or its supervisor: on real process trees."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from server.supervisor import leftovers
from server.supervisor.child import ReplicaLauncher
from server.supervisor.process import Child, LaunchRefused

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guardians are for Linux")

# A server with a child, and a grandchild that leaves the session, the group and its parent.
TREE = """
import os, signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(120)"]
subprocess.Popen(sleeper)
subprocess.Popen([sys.executable, "-S", "-c",
    "import os, subprocess, sys, time; os.setsid();"
    "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(120)'],"
    " start_new_session=True); os._exit(0) if 'leave' in sys.argv else time.sleep(120)",
    *sys.argv[1:]])
print("started", os.environ.get("FLEET_API_KEYS"), os.environ.get("OWN"), os.getcwd(), flush=True)
time.sleep(0 if "brief" in sys.argv else 120)
sys.exit(3)
"""
DEADLINE_SECONDS = 20.0


@pytest.fixture
def mark() -> Iterator[str]:
    """Return what marks all processes of a test, and see to it that none stays."""
    mark = secrets.token_hex(8)
    yield mark
    left = [pid for pid in marked(mark) if leftovers.sweep(_own_mark(pid))]
    assert not left, f"the test left {left} behind"


@pytest.fixture
def make_launcher(tmp_path: Path, mark: str) -> Callable[..., ReplicaLauncher]:
    """Return a function that makes a launcher of the tree above."""
    script = tmp_path / "tree.py"
    script.write_text(TREE)

    def make(*arguments: str, **changes: object) -> ReplicaLauncher:
        settings = {
            "command": [sys.executable, "-S", str(script), *arguments],
            "environment": {"OWN": mark},
            "port": 8490,
            "port_key": "workers.base.port",
            "log": tmp_path / "logs" / "base-0.log",
            "directory": tmp_path,
            "grace_seconds": 5.0,
        }
        return ReplicaLauncher(**{**settings, **changes})  # type: ignore[arg-type]

    return make


def marked(mark: str) -> list[int]:
    """Return the living processes of a test."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"OWN={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _own_mark(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next(one.partition("=")[2] for one in variables if one.startswith(leftovers.MARK))


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition on real processes, but not for ever."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(0.02)


Launch = Callable[..., ReplicaLauncher]


@pytest.fixture
async def tree(make_launcher: Launch, mark: str) -> AsyncIterator[Child]:
    """Return a tree that has come up in full: guardian, server and three descendants."""
    child = await make_launcher().launch()
    await until(lambda: len(marked(mark)) == 5, "five processes")
    yield child
    await child.stop()


def server_of(child: Child, mark: str) -> int:
    """Return the id of the guardian's one direct child."""
    return next(pid for pid in marked(mark) if _parent(pid) == child.pid)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_stopping_ends_everything(tree: Child, mark: str) -> None:
    await tree.stop()
    assert marked(mark) == []
    assert await tree.wait() == 128 + signal.SIGTERM


async def test_stopping_twice_is_stopping_once(tree: Child) -> None:
    await tree.stop()
    await tree.stop()


async def test_a_killed_server_takes_everything_along(tree: Child, mark: str) -> None:
    os.kill(server_of(tree, mark), signal.SIGKILL)
    assert await tree.wait() == 128 + signal.SIGKILL
    assert marked(mark) == []


async def test_a_killed_guardian_takes_the_server_along_and_the_rest_is_swept(
    tree: Child, mark: str
) -> None:
    server = server_of(tree, mark)
    os.kill(tree.pid, signal.SIGKILL)
    assert await tree.wait() == 128 + signal.SIGKILL
    await until(lambda: server not in marked(mark), "the kernel kills the server")
    await tree.stop()
    assert marked(mark) == []


async def test_a_guardian_that_is_asked_to_end_ends_everything(tree: Child, mark: str) -> None:
    os.kill(tree.pid, signal.SIGTERM)
    await tree.wait()
    assert marked(mark) == []


async def test_an_exit_code_is_handed_on(make_launcher: Launch, mark: str) -> None:
    child = await make_launcher("brief", "leave").launch()
    assert await child.wait() == 3
    assert marked(mark) == []
    await child.stop()


async def test_a_server_deaf_to_sigterm_is_killed(make_launcher: Launch, mark: str) -> None:
    child = await make_launcher("stubborn", grace_seconds=0.2).launch()
    await until(lambda: len(marked(mark)) == 5, "five processes")
    await child.stop()
    assert marked(mark) == []
    assert await child.wait() == 128 + signal.SIGKILL


async def test_a_command_that_is_not_there(make_launcher: Launch) -> None:
    launcher = make_launcher(command=["/nowhere/python"])
    child = await launcher.launch()
    assert await child.wait() == 127
    await child.stop()
    assert launcher.last_words() == "/nowhere/python: cannot be started: No such file or directory"


async def test_a_taken_port_is_named_with_its_key(make_launcher: Launch) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LaunchRefused, match=rf"port {port} is taken .* workers\.base\.port"):
            await make_launcher(port=port).launch()


async def test_the_replica_sees_its_environment_and_none_of_the_gateways_secrets(
    make_launcher: Launch, monkeypatch: pytest.MonkeyPatch, mark: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLEET_API_KEYS", "secret")
    launcher = make_launcher("brief", "leave")
    child = await launcher.launch()
    await child.wait()
    await child.stop()
    assert launcher.log.read_text() == f"started None {mark} {tmp_path}\n"


SHARER = """
import time
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=4096)
print(memory.name, flush=True)
time.sleep(120)
"""


@pytest.mark.parametrize("victim", ["server", "guardian"])
async def test_a_killed_process_leaves_no_shared_memory(
    victim: str, make_launcher: Launch, mark: str
) -> None:
    launcher = make_launcher(command=[sys.executable, "-S", "-c", SHARER])
    child = await launcher.launch()
    await until(lambda: launcher.log.exists() and "\n" in launcher.log.read_text(), "its name")
    memory = Path("/dev/shm") / launcher.log.read_text().split()[0]  # noqa: S108
    assert memory.exists()
    os.kill(server_of(child, mark) if victim == "server" else child.pid, signal.SIGKILL)
    await child.wait()
    await child.stop()
    assert marked(mark) == []
    assert not memory.exists()


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from server.supervisor.child import ReplicaLauncher

async def main():
    root = Path(sys.argv[1])
    launcher = ReplicaLauncher([sys.executable, "-S", str(root / "tree.py")], {"OWN": sys.argv[2]},
        8491, "workers.base.port", root / "base-0.log", root)
    await launcher.launch()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
async def test_a_dead_supervisor_leaves_nothing(
    number: signal.Signals, make_launcher: Launch, mark: str, tmp_path: Path
) -> None:
    make_launcher()  # writes the script
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path), mark]
    supervisor = await asyncio.create_subprocess_exec(*command)
    await until(lambda: len(marked(mark)) == 5, "five processes")
    supervisor.send_signal(number)
    await supervisor.wait()
    await until(lambda: marked(mark) == [], "everything ends with its supervisor")
