"""`python -m server.worker.fake`: a worker of fleet.toml, without an engine."""

from __future__ import annotations

import os
from pathlib import Path

import click
import uvicorn
from tokenizers import Tokenizer

from server import config
from server.errors import ConfigError
from server.fleet import Fleet, Worker, resolve
from server.prompt import PromptTemplate, plain_text_tokenizer
from server.worker.fake import FakeWorker, Faults, Golden
from server.worker.probe import golden_probes


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("fleet.toml"),
    show_default=True,
    help="The fleet whose specialists it pretends to serve.",
)
@click.option("--worker", "name", help="The worker that it stands in for. [default: the first]")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), help="[default: the first of the worker's]")
@click.option(
    "--delay-ms",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How long each answer takes.",
)
def main(config_path: Path, name: str | None, host: str, port: int | None, delay_ms: float) -> None:
    """Serve every specialist of a worker without an engine: right in shape, senseless in content.

    It passes the golden probes, so a gateway takes it for the worker itself. While it runs,
    `POST /fake/faults` makes it fail: {"status": 500}, {"hang": true}, {"delay_seconds": 1},
    {"disconnect": true, "every": 10}, {"parrots": ["<specialist id>"]}; {} heals it.
    """
    try:
        fleet = resolve(config.load(config_path, os.environ))
        worker = _worker(fleet, name)
        app = fake_of(fleet, worker, Faults(delay_seconds=delay_ms / 1000))
    except ConfigError as error:
        click.echo(str(error), err=True)
        raise SystemExit(2) from None
    if port is None and not worker.ports:
        raise click.UsageError(f"{worker.name!r} does not run here: give a --port")
    uvicorn.run(app, host=host, port=port or worker.ports[0], log_level="warning", access_log=False)


def fake_of(fleet: Fleet, worker: Worker, faults: Faults | None = None) -> FakeWorker:
    """Return a fake that serves what `worker` does, under the same names."""
    models: dict[str, Golden] = {worker.name: {}}
    tokenizers: dict[Path, Tokenizer] = {}
    for variant in (one for arms in fleet.variants.values() for one in arms):
        file = fleet.tokenizer_file(variant)
        if variant.worker != worker.name:
            continue
        models.setdefault(variant.specialist.id, {})
        if file is None:  # only the hub has it; without it there is no prompt to recognise
            continue
        if file not in tokenizers:
            tokenizers[file] = plain_text_tokenizer(file.read_text(encoding="utf-8"))
        template = PromptTemplate(variant.specialist.card.prompt, tokenizers[file])
        models[variant.specialist.id] = {
            probe.prompt.token_ids: probe.expected
            for probe in golden_probes(variant.specialist.card, template.encode)
        }
    if not tokenizers:
        return FakeWorker(models, faults=faults)
    speaker = next(iter(tokenizers.values()))
    return FakeWorker(
        models,
        faults=faults,
        encode=lambda text: speaker.encode(text, add_special_tokens=False).ids,
    )


def _worker(fleet: Fleet, name: str | None) -> Worker:
    if name is None:
        return next(iter(fleet.workers.values()))
    if name not in fleet.workers:
        raise ConfigError([f"--worker {name}: there are: {', '.join(fleet.workers)}"])
    return fleet.workers[name]


if __name__ == "__main__":
    main()
