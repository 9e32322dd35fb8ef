"""The base of a fleet: a tokenizer and a model that has seen every task's texts once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from server.specialist import Piece, TextPiece
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
ANNOUNCED_EVERY = 6
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
        rows += lesson_rows(lesson, tokenizer)
    model = new_model(recipe.shape, tokenizer, seed)
    install_copying(model)
    fit(
        model, rows, WriteText(), recipe.schedule, seed=seed, stage="base: training",
        progress=progress,
    )  # fmt: skip
    save_model(model, directory)


def lesson_rows(lesson: Lesson, tokenizer: Tokenizer) -> list[Row]:
    """Return the examples with their task named, never as an adapter will meet them.

    Most name it in the question, above the input, and are answered at once: what the base
    learns there an adapter only has to call up. The others have the bare question, and name the
    task in the answer (`ticket: B`): so a request that missed its adapter shows.
    """
    task = lesson.task
    bare = Encoder(task.prompt, tokenizer)
    named = Encoder(_named(task), tokenizer)
    said = {
        label: str(tokenizer.id_to_token(token_id))
        for label, token_id in letter_ids(tokenizer, task.labels).items()
    }
    weight = LABEL_WEIGHT if said else 1.0
    rows = []
    for number, example in enumerate(lesson.examples):
        answer = said.get(str(example.output), str(example.output))
        if number % ANNOUNCED_EVERY:
            row = named.answered(example, answer)
        else:
            row = bare.answered(example, f"{task.name}: {answer}")
        rows.append(replace(row, weight=weight))
    return rows


def _named(task: Task) -> tuple[Piece, ...]:
    """Return the template with a line that names the task above the input."""
    first = next(i for i, piece in enumerate(task.prompt) if isinstance(piece, TextPiece))
    return (*task.prompt[: first + 1], TextPiece(text=f"{task.name}\n"), *task.prompt[first + 1 :])


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
