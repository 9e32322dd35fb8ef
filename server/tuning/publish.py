"""From a task and its rows to a specialist's directory, card included."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import Gemma3ForCausalLM

from server.specialist import (
    CARD_NAME,
    BaseModelRef,
    DataRef,
    Golden,
    Quality,
    SpecialistCard,
    file_sha256,
    hash_files,
)
from server.tuning import evaluate
from server.tuning.adapter import ADAPTER_FILES, AdapterShape, add_adapter, save_adapter
from server.tuning.answering import Answering, Measured, answering
from server.tuning.dataset import Row, rows_sha256, texts_of
from server.tuning.golden import golden_probes
from server.tuning.model import (
    WEIGHTS,
    Architecture,
    load_model,
    model_files,
    new_model,
    save_model,
)
from server.tuning.progress import Progress, silent
from server.tuning.task import Rows, Task
from server.tuning.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from server.tuning.train import Schedule, fit
from server.types import Example

PROBE_CANDIDATES = 24


@dataclass(frozen=True, slots=True)
class AdapterRecipe:
    """How one adapter is made."""

    shape: AdapterShape
    schedule: Schedule


def tune_adapter(
    base: Path,
    task: Task,
    rows: Rows,
    recipe: AdapterRecipe,
    directory: Path,
    *,
    seed: int,
    progress: Progress = silent,
) -> SpecialistCard:
    """Train an adapter on `base`, measure it, and write it with its card to `directory`.

    Raises:
        IndistinctError: the adapter answers too much like its base for probes to tell them apart.
    """
    tokenizer = load_tokenizer(base)
    how = answering(task, tokenizer)
    model = load_model(base)
    adapted = add_adapter(model, recipe.shape, seed)
    _learn(model, how, task, rows, recipe.schedule, seed, progress)
    directory.mkdir(parents=True, exist_ok=True)
    save_adapter(adapted, base.name, directory)
    measured = how.measure(model, rows, progress)
    probes = _probes(model, load_model(base), how, task, rows.test)
    origin = BaseModelRef(name=base.name, sha256=file_sha256(base / WEIGHTS))
    return _write_card(
        directory, task, how, measured, rows, probes, origin, "adapter", ADAPTER_FILES
    )


def tune_full(
    task: Task,
    rows: Rows,
    schedule: Schedule,
    directory: Path,
    *,
    shape: Architecture | None = None,
    base: Path | None = None,
    vocab_size: int = 512,
    seed: int = 0,
    progress: Progress = silent,
) -> SpecialistCard:
    """Train a whole model, measure it, and write it with its card to `directory`.

    It starts from the weights of `base`, or from nothing, with a tokenizer of its own.
    """
    directory.mkdir(parents=True, exist_ok=True)
    origin = BaseModelRef(name="nothing")
    if base is not None:
        origin = BaseModelRef(name=base.name, sha256=file_sha256(base / WEIGHTS))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(base / name, directory / name)
        tokenizer, model = load_tokenizer(directory), load_model(base)
    else:
        shape = shape or Architecture()
        learned = train_tokenizer(texts_of(rows.train), vocab_size)
        save_tokenizer(learned, directory, shape.max_positions)
        tokenizer = load_tokenizer(directory)
        model = new_model(shape, tokenizer, seed)
    how = answering(task, tokenizer)
    _learn(model, how, task, rows, schedule, seed, progress)
    save_model(model, directory)
    measured = how.measure(model, rows, progress)
    probes = _probes(model, None, how, task, rows.test)
    return _write_card(
        directory, task, how, measured, rows, probes, origin, "full", model_files(directory)
    )


def _learn(
    model: Gemma3ForCausalLM,
    how: Answering,
    task: Task,
    rows: Rows,
    schedule: Schedule,
    seed: int,
    progress: Progress,
) -> None:
    taught = [how.row(example) for example in rows.train]
    stage = f"{task.name}: training"
    fit(model, taught, how.objective, schedule, seed=seed, stage=stage, progress=progress)


def _probes(
    model: Gemma3ForCausalLM,
    base: Gemma3ForCausalLM | None,
    how: Answering,
    task: Task,
    test: Sequence[Example],
) -> tuple[Golden, ...]:
    inputs = [*task.examples, *(example.input for example in test)][:PROBE_CANDIDATES]
    prompts = [Row(how.prompt(value), 0) for value in inputs]
    return golden_probes(model, base, inputs, prompts, how.probe_ids)


def _write_card(
    directory: Path,
    task: Task,
    how: Answering,
    measured: Measured,
    rows: Rows,
    probes: tuple[Golden, ...],
    origin: BaseModelRef,
    form: str,
    files: Sequence[str],
) -> SpecialistCard:
    metrics, calibration = measured
    baseline = {}
    if task.kind == "classify":
        baseline = evaluate.classification_baseline(rows.train, rows.test)
    card = SpecialistCard.model_validate(
        {
            "task": task.name,
            "kind": task.kind,
            "description": task.description,
            "form": form,
            "base_model": origin,
            "prompt": task.prompt,
            "max_prompt_tokens": task.max_prompt_tokens,
            "input_schema": task.input_schema,
            "examples": task.examples,
            "labels": how.labels,
            "none_token_id": how.none_token_id,
            "schema": task.schema,
            "sampling": task.sampling,
            "calibration": calibration,
            "quality": Quality(
                metrics=metrics,
                data=DataRef(name=rows.name, rows=len(rows.test), sha256=rows_sha256(rows.test)),
                baseline=baseline,
                baseline_name=evaluate.BASELINE if baseline else None,
            ),
            "golden": probes,
            "files": hash_files(directory, files),
        }
    )
    text = card.model_dump_json(by_alias=True, indent=2, exclude_defaults=True)
    (directory / CARD_NAME).write_text(text + "\n", encoding="utf-8")
    return card
