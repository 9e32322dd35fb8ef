"""From examples and documents to rows of token ids, and rows to batches of like length."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from server.prompt import PromptTemplate
from server.specialist import Piece
from server.tuning.tokenizer import BOS, CONTROL_TOKENS, END_OF_TURN, EOS, control_id
from server.types import Example, Input

WIDTH_STEP = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to learn from."""

    ids: tuple[int, ...]
    answer_from: int
    """The first position that is predicted; what stands before it is only read."""
    labels: tuple[int, ...] = ()
    """Indices of the labels that apply, for objectives over labels."""
    weight: float = 1.0
    """How much each predicted token counts, where rows of several sorts share a batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows side by side, padded on the right, where causal attention never looks."""

    ids: torch.Tensor
    """(rows, longest) token ids."""
    rows: tuple[Row, ...]


class Encoder:
    """Turns examples into rows with the very template that serves them."""

    def __init__(self, pieces: Iterable[Piece], tokenizer: Tokenizer) -> None:
        self._template = PromptTemplate(pieces, tokenizer)
        self._tokenizer = tokenizer
        self._end = control_id(tokenizer, END_OF_TURN)

    def prompt(self, value: Input) -> tuple[int, ...]:
        """Return the token ids of one input's prompt."""
        return self._template.encode(value).token_ids

    def answered(self, example: Example, answer: str) -> Row:
        """Return the prompt followed by the text of its answer and the end of the turn."""
        prompt = self.prompt(example.input)
        tokens = self._tokenizer.encode(answer, add_special_tokens=False).ids
        return Row((*prompt, *tokens, self._end), len(prompt))

    def labelled(self, example: Example, index: dict[str, int]) -> Row:
        """Return the prompt alone, with the indices of its labels."""
        prompt = self.prompt(example.input)
        names = (example.output,) if isinstance(example.output, str) else example.output
        return Row(prompt, len(prompt), tuple(index[name] for name in names))


def document_rows(
    texts: Iterable[str], tokenizer: Tokenizer, longest: int, weight: float
) -> list[Row]:
    """Return texts as rows in which every token is predicted, cut to `longest` tokens."""
    bos, eos = control_id(tokenizer, BOS), control_id(tokenizer, EOS)
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [Row((bos, *encoding.ids, eos)[:longest], 1, weight=weight) for encoding in encodings]


def copying_rows(tokenizer: Tokenizer, count: int, longest: int, seed: int) -> list[Row]:
    """Return rows of random tokens said twice; the second time is predicted.

    Text teaches copying slowly, because most words can be guessed. Here nothing can be, so the
    circuit that looks up "what came after this token before" forms within some hundred steps.
    """
    chance = random.Random(seed)
    bos, eos = control_id(tokenizer, BOS), control_id(tokenizer, EOS)
    first = len(CONTROL_TOKENS)
    size = tokenizer.get_vocab_size()
    rows = []
    for _ in range(count):
        length = chance.randint(4, longest // 2)
        said = [chance.randrange(first, size) for _ in range(length)]
        begin = chance.randrange(0, length - 2)
        rows.append(Row((bos, *said, *said[begin:], eos), length + 2))
    return rows


def batches(rows: Sequence[Row], tokens: int, seed: int) -> Iterator[Batch]:
    """Yield batches of about `tokens` tokens for ever, going through all rows in new order.

    Rows of like length share a batch, so that little of it is padding.
    """
    chance = random.Random(seed)
    while True:
        order = list(range(len(rows)))
        chance.shuffle(order)
        groups = _of_like_length(rows, order, tokens)
        chance.shuffle(groups)
        yield from (pad([rows[i] for i in group]) for group in groups)


def in_order(rows: Sequence[Row], tokens: int) -> Iterator[tuple[list[int], Batch]]:
    """Yield every row once in batches of like length, with the rows' own positions."""
    for group in _of_like_length(rows, range(len(rows)), tokens):
        yield group, pad([rows[i] for i in group])


def pad(rows: Sequence[Row]) -> Batch:
    """Lay rows side by side, filled with zeros on the right."""
    ids = torch.zeros((len(rows), max(_width(row) for row in rows)), dtype=torch.long)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row.ids)] = torch.tensor(row.ids)
    return Batch(ids, tuple(rows))


def read_examples(path: Path) -> list[Example]:
    """Read JSONL rows `{"input": ..., "output": ...}` as examples.

    Raises:
        OSError, ValueError: the file cannot be read, or a line is not such a row.
    """
    examples = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        row = json.loads(line)
        if not isinstance(row, dict) or not {"input", "output"} <= row.keys():
            raise ValueError(f'{path}:{number}: write {{"input": ..., "output": ...}}')
        output = row["output"]
        if isinstance(output, list):
            output = tuple(output)
        elif not isinstance(output, str):
            output = json.dumps(output, separators=(",", ":"), ensure_ascii=False)
        examples.append(Example(row["input"], output))
    return examples


def texts_of(examples: Iterable[Example]) -> list[str]:
    """Return all that examples say, for a tokenizer to learn from."""
    texts: list[str] = []
    for example in examples:
        value, output = example.input, example.output
        texts += [value] if isinstance(value, str) else [str(v) for v in value.values()]
        texts += [output] if isinstance(output, str) else list(output)
    return texts


def rows_sha256(examples: Iterable[Example]) -> str:
    """Return the sha256 of examples written as JSONL, for a card's reference to its data."""
    digest = hashlib.sha256()
    for example in examples:
        row = {"input": example.input, "output": example.output}
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _of_like_length(rows: Sequence[Row], order: Iterable[int], tokens: int) -> list[list[int]]:
    """Group positions of rows so that each group's padded batch has at most `tokens` tokens."""
    open_groups: dict[int, list[int]] = {}
    groups = []
    for i in order:
        width = _width(rows[i])
        group = open_groups.setdefault(width, [])
        group.append(i)
        if (len(group) + 1) * width > tokens:
            groups.append(open_groups.pop(width))
    return [*groups, *open_groups.values()]


def _width(row: Row) -> int:
    # Few different shapes: the CPU's kernels are compiled for each shape that they meet.
    return -(-len(row.ids) // WIDTH_STEP) * WIDTH_STEP
