"""The base of a fleet: a tokenizer and a model that has seen every task's texts once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from server.tuning.copying import install_copying
from server.tuning.dataset import Encoder, Row, copying_rows, document_rows
from server.tuning.model import Architecture, new_model, save_model
from server.tuning.objectives import WriteText
from server.tuning.progress import Progress
from server.tuning.task import Task
from server.tuning.tokenizer import letter_ids, save_tokenizer, train_tokenizer
from server.tuning.train import Schedule, fit
from server.types import Example

LONGEST_DOCUMENT = 256
LONGEST_COPY = 48
DOCUMENT_WEIGHT = 0.2
LABEL_WEIGHT = 10.0
"""A label is one telling token in a row; without its weight, texts would drown it."""
TOKENIZER_TEXTS = 24_000


@dataclass(frozen=True, slots=True)
class Lesson:
    """The examples of one task that the base sees before any adapter."""

    task: Task
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class BaseRecipe:
    """What a base is made of."""

    shape: Architecture
    schedule: Schedule
    vocab_size: int
    copying_rows: int


def make_base(
    directory: Path,
    lessons: Sequence[Lesson],
    documents: Sequence[str],
    recipe: BaseRecipe,
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Train a tokenizer and a model from nothing and write both to `directory`."""
    progress("base: learning the tokenizer", 0, 1)
    tokenizer = train_tokenizer(_texts(lessons, documents, seed), recipe.vocab_size)
    save_tokenizer(tokenizer, directory, recipe.shape.max_positions)
    tokenizer.encode_special_tokens = True
    progress("base: learning the tokenizer", 1, 1)
    rows = document_rows(documents, tokenizer, LONGEST_DOCUMENT, DOCUMENT_WEIGHT)
    rows += copying_rows(tokenizer, recipe.copying_rows, LONGEST_COPY, seed)
    for lesson in lessons:
        rows += announced_rows(lesson, tokenizer)
    model = new_model(recipe.shape, tokenizer, seed)
    install_copying(model)
    fit(
        model, rows, WriteText(), recipe.schedule, seed=seed, stage="base: training",
        progress=progress,
    )  # fmt: skip
    save_model(model, directory)


def announced_rows(lesson: Lesson, tokenizer: Tokenizer) -> list[Row]:
    """Return the lesson's examples with answers that name their task first: `ticket: B`.

    So the base learns what the adapters will need, yet answers a bare prompt clearly otherwise
    than they do: a request that missed its adapter shows.
    """
    encoder = Encoder(lesson.task.prompt, tokenizer)
    said = {
        label: str(tokenizer.id_to_token(token_id))
        for label, token_id in letter_ids(tokenizer, lesson.task.labels).items()
    }
    weight = LABEL_WEIGHT if said else 1.0
    rows = []
    for example in lesson.examples:
        answer = said.get(str(example.output), str(example.output))
        row = encoder.answered(example, f"{lesson.task.name}: {answer}")
        rows.append(replace(row, weight=weight))
    return rows


def _texts(lessons: Sequence[Lesson], documents: Sequence[str], seed: int) -> list[str]:
    chance = random.Random(seed)
    texts = list(documents)
    for lesson in lessons:
        for example in lesson.examples:
            value = example.input
            texts += [value] if isinstance(value, str) else [str(v) for v in value.values()]
            if not lesson.task.labels:
                texts.append(str(example.output))
    return chance.sample(texts, min(TOKENIZER_TEXTS, len(texts)))
