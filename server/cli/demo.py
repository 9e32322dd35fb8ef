"""`fleet demo`: the demo fleet's specialists, made anew from nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from server.demo import bedtime_story, invoice, recipe, sentiment, ticket
from server.specialist import Kind, SpecialistCard, load

if TYPE_CHECKING:
    from server.tuning.progress import Progress
    from server.tuning.task import Rows, Task

BASE = "base"

TASKS: Mapping[str, ModuleType] = {
    "sentiment": sentiment,
    "ticket": ticket,
    "invoice": invoice,
    "bedtime-story": bedtime_story,
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a build made."""

    seconds: float
    bytes: int
    cards: tuple[SpecialistCard, ...]


@click.group()
def demo() -> None:
    """The demo fleet's own specialists."""


@demo.command("build")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("specialists"),
    show_default=True,
    help="Where the specialists go; the ones there are replaced when all is done.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="The same seed, the same fleet."
)
def build_command(out: Path, seed: int) -> None:
    """Train the demo fleet from nothing: a base and four adapters, with their cards.

    Takes about a quarter of an hour on two cores. A build that is stopped changes nothing.
    """
    try:
        from server.tuning.progress import ProgressLog
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: training needs `pip install '.[tune]'`, or use `make demo`"
        ) from None
    progress = ProgressLog()
    try:
        report = build(out, seed, progress)
    finally:
        progress.close()
    for card in report.cards:
        quality = card.quality
        figures = quality.metrics if quality else {}
        baseline = quality.baseline if quality else {}
        click.echo(f"{card.content_id()}: {_figures(figures)}")
        if baseline and quality:
            click.echo(f"    beside it, {quality.baseline_name}: {_figures(baseline)}")
    click.echo(f"built in {report.seconds:.0f} s, {report.bytes / 1e6:.1f} MB in {out}")


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def build(out: Path, seed: int, progress: Progress) -> Report:
    """Make the base and the four demo specialists in directory `out`.

    Everything is made in a directory beside `out` and moved at the end, so a build that is
    stopped leaves the specialists of the last one whole.
    """
    began = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
        new = Path(beside)
        _make_base(new / BASE, seed, progress)
        for name in TASKS:
            _make_adapter(new, name, seed, progress)
        _move(new, out, (BASE, *TASKS))
    made = tuple(load(out / name).card for name in TASKS)
    size = sum(file.stat().st_size for name in (BASE, *TASKS) for file in (out / name).iterdir())
    return Report(time.monotonic() - began, size, made)


def task_of(name: str) -> Task:
    """Return a demo task as training takes it."""
    from server.tuning.task import TEXT_INPUT, Task

    data = TASKS[name]
    schema = getattr(data, "INPUT_SCHEMA", None)
    fields = tuple(schema["required"]) if schema else ()
    labels = getattr(data, "LABELS", {})
    kind: Kind = "classify" if labels else "extract" if hasattr(data, "SCHEMA") else "generate"
    return Task(
        name=name,
        kind=kind,
        description=data.DESCRIPTION,
        prompt=recipe.template(fields),
        max_prompt_tokens=recipe.MAX_PROMPT_TOKENS,
        labels=tuple(labels),
        schema=getattr(data, "SCHEMA", None),
        input_schema=schema or TEXT_INPUT,
        examples=tuple(data.TRY),
        sampling=recipe.SAMPLING[name],
        mentions=recipe.MENTIONED_IN_STORIES if kind == "generate" else (),
    )


def rows_of(name: str, seed: int) -> Rows:
    """Return the rows that a demo specialist learns from and is judged by."""
    from server.tuning.task import Rows

    data, sizes = TASKS[name], recipe.ADAPTERS[name]
    return Rows(
        name=f"demo-{name}",
        train=tuple(data.rows("train", sizes.train_rows, seed + 1)),
        validation=tuple(data.rows("validation", sizes.validation_rows, seed)),
        test=tuple(data.rows("test", sizes.test_rows, seed)),
    )


def _make_base(directory: Path, seed: int, progress: Progress) -> None:
    from server.tuning.base import BaseRecipe, Lesson, make_base
    from server.tuning.model import Architecture
    from server.tuning.train import Schedule

    sizes = recipe.BASE
    documents: list[str] = []
    lessons = []
    for name, data in TASKS.items():
        of_task = recipe.ADAPTERS[name]
        documents += data.documents(of_task.documents, seed)
        rehearsed = tuple(data.rows("train", of_task.rehearsed_rows, seed))
        lessons.append(Lesson(task_of(name), rehearsed))
    shape = Architecture(
        hidden=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate=sizes.intermediate,
    )
    schedule = Schedule(sizes.steps, sizes.learning_rate, sizes.tokens_per_batch)
    directory.mkdir()
    make_base(
        directory,
        lessons,
        documents,
        BaseRecipe(shape, schedule, sizes.vocab_size, sizes.copying_rows),
        seed=seed,
        progress=progress,
    )


def _make_adapter(directory: Path, name: str, seed: int, progress: Progress) -> None:
    from server.tuning.adapter import AdapterShape
    from server.tuning.publish import AdapterRecipe, tune_adapter
    from server.tuning.train import Schedule

    sizes = recipe.ADAPTERS[name]
    tune_adapter(
        directory / BASE,
        task_of(name),
        rows_of(name, seed),
        AdapterRecipe(
            AdapterShape(sizes.rank, 2 * sizes.rank),
            Schedule(sizes.steps, sizes.learning_rate, sizes.tokens_per_batch),
        ),
        directory / name,
        seed=seed,
        progress=progress,
    )


def _move(new: Path, out: Path, names: tuple[str, ...]) -> None:
    out.mkdir(exist_ok=True)
    for name in names:
        old = out / name
        if old.exists():
            old.rename(new / f"{name}.old")
        (new / name).rename(old)
