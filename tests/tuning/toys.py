"""Rows so easy that a very small model learns them within seconds."""

from __future__ import annotations

import random
from collections.abc import Sequence

from server.specialist import ControlPiece, InputPiece, Piece, Sampling, TextPiece
from server.tuning.adapter import AdapterShape
from server.tuning.base import BaseRecipe
from server.tuning.model import Architecture
from server.tuning.publish import AdapterRecipe
from server.tuning.task import Rows, Task
from server.tuning.train import Schedule
from server.types import Example

TINY = Architecture(
    hidden=96, layers=2, heads=1, kv_heads=1, head_dim=32, intermediate=96, max_positions=256
)
SHORT = Schedule(steps=50, learning_rate=4e-3, tokens_per_batch=512, warmup_steps=5)
ADAPTER = AdapterRecipe(AdapterShape(8, 16), Schedule(150, 1e-2, 512, warmup_steps=5))
BASE = BaseRecipe(TINY, Schedule(250, 4e-3, 1024, warmup_steps=5), vocab_size=340, copying_rows=50)

PROMPT: tuple[Piece, ...] = (
    ControlPiece(control="<bos>"),
    ControlPiece(control="<start_of_turn>"),
    TextPiece(text="user\n"),
    InputPiece(input="text"),
    ControlPiece(control="<end_of_turn>"),
    TextPiece(text="\n"),
    ControlPiece(control="<start_of_turn>"),
    TextPiece(text="model\n"),
)

WORDS = {
    "animal": ("cat", "dog", "fox", "hen"),
    "colour": ("red", "blue", "green", "grey"),
    "number": ("one", "two", "six", "ten"),
}
FILLERS = ("a", "the", "my", "some")


def sorting_task(*, words: bool = False) -> Task:
    """Return a task that says which list a text's telling word is from."""
    return Task(
        name="sorting",
        kind="classify",
        description="Which list the telling word is from.",
        prompt=PROMPT,
        max_prompt_tokens=64,
        labels=tuple(WORDS),
        words=words,
        sampling=Sampling(max_tokens=8),
    )


def finding_task() -> Task:
    """Return a task that says which lists have a word in the text: none, some or all."""
    return Task(
        name="finding",
        kind="tag",
        description="Which lists have a word in the text.",
        prompt=PROMPT,
        max_prompt_tokens=64,
        labels=tuple(WORDS),
    )


def sorting_rows() -> Rows:
    """Return rows for the sorting task."""
    return _rows("sorting", [_sorted(seed) for seed in range(400)])


def finding_rows() -> Rows:
    """Return rows for the finding task."""
    return _rows("finding", [_found(seed) for seed in range(600)])


def _rows(name: str, examples: Sequence[Example]) -> Rows:
    return Rows(f"toy-{name}", examples[:-80], examples[-80:-40], examples[-40:])


def _sorted(seed: int) -> Example:
    chance = random.Random(seed)
    label = chance.choice(sorted(WORDS))
    words = [chance.choice(FILLERS) for _ in range(3)]
    words.insert(chance.randrange(4), chance.choice(WORDS[label]))
    return Example(" ".join(words), label)


def _found(seed: int) -> Example:
    chance = random.Random(seed)
    labels = tuple(label for label in WORDS if chance.random() < 0.5)
    words = [chance.choice(FILLERS), *(chance.choice(WORDS[label]) for label in labels)]
    chance.shuffle(words)
    return Example(" ".join(words), labels)
