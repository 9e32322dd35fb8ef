"""A vLLM general plugin: vLLM calls `register` at the start of each of its processes.

Each cure looks first whether its fault is there, so that the plugin does nothing on other builds.
For comparison, `FLEET_ENGINE_PLUGIN=off` leaves vLLM as it is, and `stock-lora` leaves it its LoRA
operators alone (without the AMX cure, some machines could not run the other side at all).
"""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import connection

logger = logging.getLogger(__name__)

SWITCH = "FLEET_ENGINE_PLUGIN"
MOST_LABELS = 1024
_WATCH = "end-with-parent"


def register() -> None:
    """Cure what ails this process; safe to call again."""
    switch = os.environ.get(SWITCH)
    if switch == "off":
        return
    end_with_parent()
    allow_many_labels()
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        ask_for_amx()
        if switch != "stock-lora":
            group_lora()


def ask_for_amx() -> None:
    """Ask the kernel for AMX state, without which vLLM's attention kernel dies with SIGILL."""
    import torch

    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    ask = getattr(torch.cpu, "_init_amx", None)
    if supported is not None and ask is not None and supported() and not ask():
        logger.warning("the kernel grants no AMX state: bfloat16 attention will fail (SIGILL)")


def allow_many_labels() -> None:
    """Let a request ask for the log-probabilities of more than 128 tokens by their ids.

    The one constant bounds both the check of requests and the sampler's buffers, which are made
    later than plugins are loaded.
    """
    from vllm import sampling_params

    name = "MAX_LOGPROB_TOKEN_IDS"
    if getattr(sampling_params, name, MOST_LABELS) < MOST_LABELS:
        if "vllm.v1.worker.gpu.sample.logprob" in sys.modules:
            logger.warning("vLLM's sampler was there first: at most 128 labels a task")
            return
        setattr(sampling_params, name, MOST_LABELS)


def group_lora() -> None:
    """Put grouped LoRA operators in the place of vLLM's, if those are the ones that we know."""
    from vllm.lora.punica_wrapper import punica_cpu

    from server.engine import linear, operators

    wrapper = getattr(punica_cpu, "PunicaWrapperCPU", None)
    ours = [(punica_cpu, one) for one in operators.OPERATORS] + [(wrapper, linear.add_lora_linear)]
    for home, function in ours:
        theirs = getattr(home, function.__name__, None)
        if theirs is None or _arguments(theirs) != _arguments(function):
            logger.warning(
                "this vLLM's %s is not the one that this plugin knows: its own LoRA operators "
                "stay, slow, and wrong for requests without an adapter",
                function.__name__,
            )
            return
    for home, function in ours:
        setattr(home, function.__name__, function)


def end_with_parent() -> None:
    """Have a process that vLLM's server started end when the server is killed.

    The engine would live on, holding its memory, with nobody left to ask it anything.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not any(t.name == _WATCH for t in threading.enumerate()):
        watch = threading.Thread(target=_end_after, args=(parent.sentinel,), name=_WATCH)
        watch.daemon = True
        watch.start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _arguments(function: Callable[..., object]) -> list[tuple[str, object]]:
    return [(one.name, one.default) for one in inspect.signature(function).parameters.values()]
