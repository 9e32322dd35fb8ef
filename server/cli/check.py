"""`fleet check`: the resolved fleet, or what is wrong with it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from server.app import create_app
from server.cli.options import config_option, read_fleet
from server.fleet import Fleet, Variant, Worker
from server.supervisor import vllm


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the resolved fleet as JSON.")
@click.option("--commands", is_flag=True, help="Print the command line of every replica run here.")
@click.option("--no-tokenizers", is_flag=True, help="Leave out the tokenizers (and the hub).")
def check(config_path: Path, as_json: bool, commands: bool, no_tokenizers: bool) -> None:
    """Check fleet.toml and every specialist it names; print the resolved fleet.

    Exit 2 and one line per fault (file, key, what to write instead) when something is wrong.
    """
    fleet = read_fleet(config_path)
    if not no_tokenizers:
        create_app(fleet)  # reads every tokenizer and builds every task, without serving
    if commands:
        for worker in fleet.workers.values():
            for replica in range(len(worker.ports)):
                click.echo(_command_line(worker, replica))
    elif as_json:
        click.echo(json.dumps(resolved(fleet), indent=2))
    else:
        _print(fleet)


def resolved(fleet: Fleet) -> dict[str, Any]:
    """Return the resolved fleet as plain values."""
    gateway = fleet.config.gateway
    return {
        "config": str(fleet.config.path),
        "gateway": gateway.model_dump(mode="json"),
        "workers": {name: _worker(worker) for name, worker in fleet.workers.items()},
        "tasks": {
            task: [_variant(variant) for variant in variants]
            for task, variants in fleet.variants.items()
        },
    }


def _worker(worker: Worker) -> dict[str, Any]:
    config = worker.config
    where = list(config.urls) or ([f"dns:{config.dns}"] if config.dns else [])
    return {
        "model": config.model,
        "revision": config.revision,
        "device": config.device,
        "replicas": where or [f"http://127.0.0.1:{port}" for port in worker.ports],
        "started_here": config.local,
        "dollars_per_hour": config.dollars_per_hour,
        "specialists": [one.id for one in worker.specialists],
    }


def _variant(variant: Variant) -> dict[str, Any]:
    card = variant.specialist.card
    return {
        "variant": variant.name,
        "specialist": variant.specialist.id,
        "kind": card.kind,
        "form": card.form,
        "worker": variant.worker,
        "weight": variant.weight,
        "labels": [label.label for label in card.labels],
        "quality": card.quality.metrics if card.quality else None,
    }


def _print(fleet: Fleet) -> None:
    whole = resolved(fleet)
    gateway = fleet.config.gateway
    click.echo(f"{whole['config']}: a good fleet\n")
    click.echo(f"gateway   http://{gateway.host}:{gateway.port}")
    for name, worker in whole["workers"].items():
        how = "run here" if worker["started_here"] else "found there"
        click.echo(
            f"worker    {name}: {worker['model']} on {worker['device']}, {how}: "
            f"{', '.join(worker['replicas'])}, ${worker['dollars_per_hour']}/h a replica"
        )
    for task, variants in whole["tasks"].items():
        for one in variants:
            labels = f", {len(one['labels'])} labels" if one["labels"] else ""
            click.echo(
                f"task      {task}/{one['variant']}: {one['specialist']} "
                f"({one['kind']}, {one['form']}{labels}) on {one['worker']}, {one['weight']} %"
            )


def _command_line(worker: Worker, replica: int) -> str:
    environment = [f"{key}={value}" for key, value in vllm.environment(worker).items()]
    return shlex.join([*environment, *vllm.command(worker, replica)])
