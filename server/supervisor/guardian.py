"""Stands between the supervisor and one replica, so that nothing outlives either (Linux).

vLLM's server starts processes of its own, which a SIGKILL of the server leaves behind. So each
replica gets this small parent. It is

* the leader of its own session: a Ctrl-C at the terminal reaches the supervisor alone, which then
  stops the replicas in good order;
* the subreaper of everything below: a descendant whose parent dies becomes a child of this process,
  even one that called setsid, so "no children left" means that nothing is left;
* a reader of a pipe that only the supervisor holds open: its end of file, which no kind of death
  can prevent, means that the supervisor is gone.

Whatever happens first (the replica ends, SIGTERM comes, the supervisor is gone), all else ends too.
Should this process itself be killed, the kernel kills the server in its place (PR_SET_PDEATHSIG),
the rest follows from `server/engine/plugin.py`, and the supervisor sweeps up (`leftovers.py`).

It runs as a script under `python -I -S`, so it imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CANNOT_START = 127
TIDY_SECONDS = 2.0


def main(parent: int, grace_seconds: float, command: list[str]) -> int:
    """Run `command` until it ends or must end; return its exit code (128 + n: signal n)."""
    woken = _wake_on_signals()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = _start(command)
    code: int | None = None
    asked = False
    while code is None and not asked:
        # The timeout is for the one thing that no descriptor tells: a pipe leaked by a fork.
        readable, _, _ = select.select([sys.stdin, woken], [], [], 1.0)
        asked = sys.stdin in readable or os.getppid() != parent
        if woken in readable:
            asked |= any(number in FORWARDED for number in os.read(woken, 512))
        code = _reap(server)
    if code is None:
        code = _end(server, grace_seconds)
    _end_the_rest()
    return code


def _wake_on_signals() -> int:
    """Have signals write their numbers into a pipe, and return the end to read."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (*FORWARDED, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return woken


def _start(command: list[str]) -> int:
    guardian = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(command, guardian)
    return pid


def _become(command: list[str], guardian: int) -> NoReturn:
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guardian:  # else it died before the request above took hold
            signal.set_wakeup_fd(-1)
            for number in (*FORWARDED, signal.SIGCHLD, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: cannot be started: {error.strerror}\n".encode())
    finally:
        os._exit(CANNOT_START)


def _reap(server: int) -> int | None:
    """Collect the children that have ended; return the server's code if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == server:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended


def _end(server: int, grace_seconds: float) -> int:
    # Only the server is asked: it drains its requests before it stops the processes under it.
    os.kill(server, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline:
        code = _reap(server)
        if code is not None:
            return code
        time.sleep(0.02)
    return 128 + signal.SIGKILL


def _end_the_rest() -> None:
    """Kill every descendant: those of a killed child become children, until none is left."""
    deadline = time.monotonic() + TIDY_SECONDS
    while True:
        sparing = time.monotonic() < deadline
        for pid in _children():
            if not (sparing and tidies_up(pid)):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def tidies_up(pid: int) -> bool:
    """Return whether this is Python's resource tracker.

    It ends by itself after all others, and removes the shared memory that killed ones could not:
    some hundred megabytes a vLLM.
    """
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _children() -> list[int]:
    mine = os.getpid()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # "pid (name) state parent ...": the name may hold anything, even parentheses.
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            except (OSError, IndexError):
                continue
            if int(parent) == mine:
                found.append(int(entry.name))
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
