"""What the demo fleet is made of: templates, sizes, steps and counts, and nothing that computes.

The figures fit two cores and a quarter of an hour; the fleet's files stay under eight megabytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.specialist import ControlPiece, InputPiece, Piece, Sampling, TextPiece


@dataclass(frozen=True, slots=True)
class BaseSizes:
    """The base's architecture and training."""

    hidden: int = 192
    layers: int = 4
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 64
    intermediate: int = 448
    vocab_size: int = 2304
    steps: int = 1600
    learning_rate: float = 3e-3
    tokens_per_batch: int = 3072
    copying_rows: int = 3_000


@dataclass(frozen=True, slots=True)
class AdapterSizes:
    """One adapter's size and training, and how many rows of its task are made."""

    documents: int
    """Texts that the base reads."""
    rehearsed_rows: int
    """Rows that the base learns, with the task announced in the answer."""
    train_rows: int
    steps: int
    tokens_per_batch: int = 2048
    learning_rate: float = 4e-3
    rank: int = 16
    validation_rows: int = 1000
    test_rows: int = 1000


BASE = BaseSizes()

ADAPTERS = {
    "sentiment": AdapterSizes(
        documents=2_000, rehearsed_rows=30_000, train_rows=24_000, steps=350
    ),
    "ticket": AdapterSizes(
        documents=2_000, rehearsed_rows=30_000, train_rows=20_000, steps=350
    ),
    "invoice": AdapterSizes(
        documents=4_000, rehearsed_rows=34_000, train_rows=12_000, steps=450,
        validation_rows=0, test_rows=500,
    ),
    "bedtime-story": AdapterSizes(
        documents=500, rehearsed_rows=3_000, train_rows=3_000, steps=150,
        validation_rows=0, test_rows=100,
    ),
}  # fmt: skip

SAMPLING = {
    "sentiment": Sampling(),
    "ticket": Sampling(),
    "invoice": Sampling(max_tokens=80, temperature=0.0),
    "bedtime-story": Sampling(max_tokens=240, temperature=0.7, top_p=0.9),
}

MAX_PROMPT_TOKENS = 384
MENTIONED_IN_STORIES = ("hero", "place")

_ASK = (
    ControlPiece(control="<bos>"),
    ControlPiece(control="<start_of_turn>"),
    TextPiece(text="user\n"),
)
_ANSWER = (
    ControlPiece(control="<end_of_turn>"),
    TextPiece(text="\n"),
    ControlPiece(control="<start_of_turn>"),
    TextPiece(text="model\n"),
)


def template(fields: tuple[str, ...]) -> tuple[Piece, ...]:
    """Return Gemma's turn around the whole text, or around one line for each field."""
    if not fields:
        return (*_ASK, InputPiece(input="text"), *_ANSWER)
    lines: list[Piece] = []
    for number, field in enumerate(fields):
        start = "" if number == 0 else "\n"
        lines += [TextPiece(text=f"{start}{field}: "), InputPiece(input=field)]
    return (*_ASK, *lines, *_ANSWER)
