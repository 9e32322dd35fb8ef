"""Lets this process end when the one that started it is gone."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel send SIGTERM here when the parent ends, killed outright included.

    For `make run`: SIGKILL of make reaches none of its children. Linux only; elsewhere, and for
    a parent that is gone already, this says so by doing what the signal would.
    """
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended between the two calls: no signal will come
        os.kill(os.getpid(), signal.SIGTERM)
