"""Runs a real vLLM for tests, in a process group of its own, and leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 240.0
PORTS = range(8500, 8600)


@dataclass(frozen=True)
class Engine:
    """A vLLM that runs: where, under which names, and the process that leads its group."""

    url: str
    base: str
    adapters: tuple[str, ...]
    process: subprocess.Popen[bytes]


@contextmanager
def running_engine(
    model: Path,
    log: Path,
    *,
    base: str = "base",
    adapters: Mapping[str, Path] | None = None,
    args: Sequence[str] = (),
) -> Iterator[Engine]:
    """Serve `model` under the name `base`, with `adapters` (name -> directory), on a free port."""
    port = free_port()
    adapters = adapters or {}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", base, "--enforce-eager"]
    command += ["--dtype", "bfloat16", "--max-model-len", "256", "--max-num-seqs", "32"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    if adapters:
        command += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", str(len(adapters))]
        command += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    environ = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *args], env=environ, stdout=file, stderr=file, start_new_session=True
        )
    try:
        engine = Engine(f"http://127.0.0.1:{port}", base, tuple(adapters), process)
        _await_models(engine, log)
        yield engine
    finally:
        reap(process)


def free_port() -> int:
    """Return a port on which nothing listens just now; two test runs seldom get the same."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port in {PORTS}")


def reap(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group that `process` leads, and wait until every member is gone.

    vLLM's EngineCore and Worker outlive their parent's SIGKILL unless they get one, too.
    """
    group = process.pid
    deadline = time.monotonic() + 30
    while members(group):
        os.killpg(group, signal.SIGKILL)
        process.poll()  # reaps the leader; init reaps the others
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {members(group)} of group {group} do not die")
        time.sleep(0.05)
    process.wait()


def members(group: int) -> list[int]:
    """Return the ids of the living processes in a process group (zombies are not living)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _await_models(engine: Engine, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if engine.process.poll() is not None:
            break
        try:
            served = httpx.get(f"{engine.url}/v1/models", timeout=5, trust_env=False).json()
            names = [card["id"] for card in served["data"]]
            if names != [engine.base, *engine.adapters]:
                raise RuntimeError(f"somebody else listens at {engine.url}, and serves {names}")
            return
        except httpx.TransportError:
            time.sleep(0.25)
    tail = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"vLLM did not come up (exit code {engine.process.returncode}):\n{tail}")
