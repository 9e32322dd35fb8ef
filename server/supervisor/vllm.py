"""How a worker of fleet.toml becomes a vLLM server: its command line and its environment.

Both are pure. Nothing secret is in either: vLLM logs its arguments, and any user can list them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from server.config import Flag
from server.errors import ConfigError
from server.fleet import Worker
from server.specialist import Specialist

HOST = "127.0.0.1"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as --max-lora-rank."""
MANY_LOGPROBS = 256
"""Most alternatives a step may report; vLLM's own 20 is fewer than many tasks have labels."""
STRUCTURED = "structured-outputs-config"
APPENDED = frozenset({"middleware"})
"""Flags whose values vLLM wants one a flag; all others take a list after one."""


def command(worker: Worker, replica: int) -> list[str]:
    """Return the command line of one replica.

    Raises:
        ConfigError: an adapter's own configuration is missing or asks for an impossible rank.
    """
    names = [worker.name, *(one.id for one in worker.full)]
    # The console command `vllm` fails on the CPU build, which is a distribution of another name.
    # With -P, no directory named like one of vLLM's modules can stand in its way.
    line = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
    line += ["--model", worker.model]
    if worker.config.revision:
        line += ["--revision", worker.config.revision]
    line += ["--host", HOST, "--port", str(worker.ports[replica])]
    line += ["--served-model-name", *names]
    flags = {**_defaults(worker), **worker.config.args}
    if worker.adapters:
        flags = {"max-loras": len(worker.adapters), "max-lora-rank": _rank(worker), **flags}
        line += ["--enable-lora", "--lora-modules"]
        line += [f"{one.id}={one.path}" for one in worker.adapters]
    for name, value in flags.items():
        line += _flag(name, value)
    return line


def environment(worker: Worker) -> dict[str, str]:
    """Return the variables to add to the environment of every replica."""
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Process titles must not overwrite the environment, where leftovers are known by it.
        "SPT_NOENV": "1",
    }
    if Path(worker.model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    if worker.config.device == "cpu":
        variables["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; the default takes most of the memory
    return {**variables, **worker.config.env}


def _defaults(worker: Worker) -> dict[str, Flag]:
    flags: dict[str, Flag] = {
        "max-logprobs": MANY_LOGPROBS,
        # What callers write must not end in a log.
        "disable-uvicorn-access-log": True,
        "enable-log-requests": False,
        # At SIGTERM, vLLM takes all of this time even when nothing is in flight, and with 0 it
        # breaks off what is.
        "shutdown-timeout": 2,
    }
    if not any(name.startswith(STRUCTURED) for name in worker.config.args):
        # Free white space lets a weak model fill its budget with tabs.
        flags[STRUCTURED] = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
    if worker.config.device == "cpu":
        flags["dtype"] = "bfloat16"
        # Compiling a tiny model adds 40 s to its start and a tenth to its speed, wants a C++
        # compiler, and is not done for adapters at all.
        flags["enforce-eager"] = True
    return flags


def _rank(worker: Worker) -> int:
    """Return the smallest rank that vLLM accepts and every adapter fits in."""
    largest = max(_adapter_rank(one) for one in worker.adapters)
    fitting = [rank for rank in RANKS if rank >= largest]
    if not fitting:
        raise ConfigError(
            [f"workers.{worker.name}: an adapter of rank {largest}: vLLM takes {RANKS[-1]} at most"]
        )
    return fitting[0]


def _adapter_rank(one: Specialist) -> int:
    path = one.path / "adapter_config.json"
    try:
        document = json.loads(path.read_bytes())
        return max(int(document["r"]), *map(int, document.get("rank_pattern", {}).values()), 1)
    except FileNotFoundError:
        raise ConfigError([f"{path}: not there; an adapter as PEFT writes it has one"]) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError([f"{path}: no PEFT configuration with a rank `r`"]) from None


def _flag(name: str, value: Flag) -> list[str]:
    match value:
        case True:
            return [f"--{name}"]
        case False:
            return [f"--no-{name}"]
        case list() if name in APPENDED:
            return [part for one in value for part in (f"--{name}", str(one))]
        case list():
            return [f"--{name}", *map(str, value)]
        case _:
            return [f"--{name}", str(value)]
