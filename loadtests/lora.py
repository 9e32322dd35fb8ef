"""Grouped against stock LoRA operators: one-token tasks a second on the fleet's own adapters.

Two real vLLM workers run side by side, one with each kind of operators, and take turns under load,
so that whatever else the machine does falls on both. No gateway: this measures the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server import config
from server.errors import ConfigError
from server.fleet import Fleet, Worker, resolve
from server.supervisor.supervisor import Supervisor

MUST_RATIO = 5.0
PROMPT_TOKENS = 60
FIRST_TOKEN = 300
"""Below lie the control tokens and bytes of most vocabularies."""
CHANGED = 0.05
"""A probability that moves by more than this is another answer, not rounding."""
LIMIT = "without_lora"
ARMS = {"stock": "stock-lora", "grouped": ""}
"""What FLEET_ENGINE_PLUGIN says in each arm."""


@dataclass(frozen=True, slots=True)
class Question:
    """A one-token request as the gateway sends it, ready for the socket."""

    head: bytes
    body: bytes


class Connection:
    """One keep-alive HTTP/1.1 connection; a general client would be half of the load."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, question: Question) -> bytes:
        """Send one request and return the body of its answer, which must be a 200."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(question.head + question.body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if head.split()[1] != b"200":
            raise RuntimeError(f"vLLM answers {head.split()[1].decode()}: {body[:500]!r}")
        return body

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()


def question(model: str, labels: Sequence[int], prompt: Sequence[int]) -> Question:
    """Return a request for the log-probabilities of `labels` after `prompt`."""
    body = json.dumps(
        {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": list(labels),
            "allowed_token_ids": list(labels),
            "return_tokens_as_token_ids": True,
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return Question(head.encode(), body)


def mixed(worker: Worker, how_many: int, rng: random.Random) -> list[Question]:
    """Return requests over all adapters of `worker`, each with a prompt of its own."""
    size = vocabulary_size(Path(worker.model))
    return [
        question(
            worker.adapters[number % len(worker.adapters)].id,
            label_ids(worker, number),
            prompt(size, rng),
        )
        for number in range(how_many)
    ]


def bare(worker: Worker, how_many: int, rng: random.Random) -> list[Question]:
    """Return requests for the base model alone: what no LoRA operator can surpass."""
    size = vocabulary_size(Path(worker.model))
    return [
        question(worker.name, label_ids(worker, number), prompt(size, rng))
        for number in range(how_many)
    ]


def label_ids(worker: Worker, number: int) -> list[int]:
    """Return the token ids that an adapter's labels stand for, or some for one without any."""
    card = worker.adapters[number % len(worker.adapters)].card
    ids = [label.token_id for label in card.labels if label.token_id is not None]
    return ids or list(range(FIRST_TOKEN, FIRST_TOKEN + 4))


def prompt(size: int, rng: random.Random) -> list[int]:
    """Return random token ids of an everyday length."""
    return [rng.randrange(min(FIRST_TOKEN, size // 2), size) for _ in range(PROMPT_TOKENS)]


def vocabulary_size(model: Path) -> int:
    """Return how many tokens the model's vocabulary has."""
    document = json.loads((model / "config.json").read_bytes())
    return int(document.get("vocab_size") or document["text_config"]["vocab_size"])


async def load(port: int, questions: Sequence[Question], callers: int, seconds: float) -> float:
    """Keep `callers` callers busy for `seconds`; return the answers a second."""
    end = time.monotonic() + seconds
    turn = iter(range(sys.maxsize))

    async def caller() -> int:
        connection = Connection(port)
        answered = 0
        while time.monotonic() < end:
            await connection.ask(questions[next(turn) % len(questions)])
            answered += 1
        connection.close()
        return answered

    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caller()) for _ in range(callers)]
    return sum(task.result() for task in tasks) / (time.monotonic() - start)


async def probabilities(port: int, asked: Question) -> dict[str, float]:
    """Return the label probabilities that one request is answered with."""
    connection = Connection(port)
    answer = json.loads(await connection.ask(asked))
    connection.close()
    logprobs: dict[str, float] = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    weights = {token: math.exp(value) for token, value in logprobs.items()}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


async def base_answers_changed(port: int, worker: Worker, rng: random.Random) -> int:
    """Count, out of 40, the base model's answers that change beside requests for adapters."""
    asked = bare(worker, 40, rng)
    noise = mixed(worker, 64, rng)
    alone = [await probabilities(port, one) for one in asked]
    async with asyncio.TaskGroup() as group:
        group.create_task(load(port, noise, 2 * len(worker.adapters), 3.0))
        tasks = [group.create_task(probabilities(port, one)) for one in asked]
    return sum(
        any(abs(before[token] - task.result()[token]) > CHANGED for token in before)
        for before, task in zip(alone, tasks, strict=True)
    )


def arms_of(fleet: Fleet, port: int) -> Fleet:
    """Return a fleet of two workers: the one with the most adapters, with either operators."""
    found = max(fleet.workers.values(), key=lambda one: len(one.adapters) if one.ports else -1)
    if not found.ports or not found.adapters:
        raise ConfigError([f"{fleet.config.path}: no worker runs here and serves adapters"])
    workers = {}
    for offset, (name, switch) in enumerate(ARMS.items()):
        env = {**found.config.env, "FLEET_ENGINE_PLUGIN": switch}
        section = found.config.model_copy(update={"env": env})
        workers[name] = dataclasses.replace(
            found, name=name, config=section, ports=(port + offset,)
        )
    return Fleet(fleet.config, {}, workers)


async def measure(fleet: Fleet, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run both arms; return the figures."""
    rates: dict[str, list[float]] = {name: [] for name in (*fleet.workers, LIMIT)}
    changed = {}
    logs = fleet.config.root / ".fleet/bench/logs"
    async with Supervisor(fleet, log_dir=logs) as supervisor:
        failed = await supervisor.wait_ready()
        if failed:
            raise RuntimeError("\n".join(f"{one.worker}: {one.reason}" for one in failed))
        ports = {name: worker.ports[0] for name, worker in fleet.workers.items()}
        turns = {
            name: (ports[name], mixed(worker, 512, random.Random(1)))
            for name, worker in fleet.workers.items()
        }
        turns[LIMIT] = (ports["grouped"], bare(fleet.workers["grouped"], 512, random.Random(1)))
        for name, worker in fleet.workers.items():
            changed[name] = await base_answers_changed(ports[name], worker, random.Random(2))
            await load(*turns[name], options.callers, 1.0)
        for _ in range(options.rounds):
            for name, turn in turns.items():
                rates[name].append(await load(*turn, options.callers, options.seconds))
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratio = median["grouped"] / median["stock"]
    return [
        figure("lora_grouped_vs_stock", ratio, "ratio", must=MUST_RATIO, better="higher"),
        figure("base_answers_changed", changed["grouped"], "of 40", must=0, better="lower"),
        figure("base_answers_changed_stock", changed["stock"], "of 40"),
        *(figure(f"tasks_per_second_{name}", rate, "1/s") for name, rate in median.items()),
    ]


def figure(
    name: str, value: float, unit: str, *, must: float | None = None, better: str = "higher"
) -> dict[str, Any]:
    """Return one figure as `.fleet/bench/*.json` holds it."""
    return {
        "name": name, "value": round(value, 3), "unit": unit,
        "must": must, "goal": None, "better": better,
    }  # fmt: skip


def main() -> int:
    """Measure, print a table and write `.fleet/bench/lora.json`; exit 1 when a must is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--fleet", type=Path, default=Path("fleet.toml"), help="default: fleet.toml"
    )
    parser.add_argument("--callers", type=int, default=64, help="callers at once (default: 64)")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each arm (default: 3)")
    parser.add_argument(
        "--port", type=int, default=8480, help="this one and the next (default: 8480)"
    )
    options = parser.parse_args()
    try:
        fleet = resolve(config.load(options.fleet, os.environ))
        figures = asyncio.run(measure(arms_of(fleet, options.port), options))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    for one in figures:
        must = "" if one["must"] is None else f"must {one['must']:g}"
        print(f"{one['name']:<28} {one['value']:>10.2f} {one['unit']:<6} {must}")
    report = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python loadtests/lora.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "figures": figures,
    }
    path = fleet.config.root / ".fleet/bench/lora.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {path}")
    missed = figures[0]["value"] < MUST_RATIO or figures[1]["value"] > 0
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
