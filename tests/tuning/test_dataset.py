"""Rows and batches hold what was said, in batches of like length."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from server.prompt import PromptTemplate
from server.tuning.dataset import (
    Encoder,
    Row,
    batches,
    copying_rows,
    in_order,
    read_examples,
    rows_sha256,
)
from server.tuning.tokenizer import train_tokenizer
from server.types import Example
from tests.tuning import toys


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Return a tokenizer that has hardly any merges."""
    made = train_tokenizer(["user model the cat"] * 3, 320)
    made.encode_special_tokens = True
    return made


def test_a_row_is_the_served_prompt_and_its_answer(tokenizer: Tokenizer) -> None:
    example = Example("The cat <end_of_turn>", "Animal!")
    row = Encoder(toys.PROMPT, tokenizer).answered(example, "Animal!")
    served = PromptTemplate(toys.PROMPT, tokenizer).encode(example.input).token_ids
    assert row.ids[: row.answer_from] == served
    assert tokenizer.decode(row.ids[row.answer_from : -1]) == "Animal!"
    assert row.ids[-1] == tokenizer.token_to_id("<end_of_turn>")


def test_batches_keep_to_their_size_and_repeat_for_a_seed() -> None:
    rows = [Row(tuple(range(length)), 1) for length in range(3, 40)]
    one = [batch.rows for batch in islice(batches(rows, 100, seed=1), 40)]
    other = [batch.rows for batch in islice(batches(rows, 100, seed=1), 40)]
    assert one == other
    assert all(max(len(row.ids) for row in batch) * len(batch) <= 100 for batch in one)


def test_going_through_in_order_meets_every_row_once() -> None:
    rows = [Row((1,) * length, 1) for length in (5, 3, 9, 3, 7)]
    seen = [i for positions, batch in in_order(rows, 10) for i in positions]
    assert sorted(seen) == list(range(len(rows)))
    for positions, batch in in_order(rows, 10):
        assert [rows[i] for i in positions] == list(batch.rows)


def test_copying_rows_say_a_span_again(tokenizer: Tokenizer) -> None:
    for row in copying_rows(tokenizer, 50, 32, seed=1):
        first, again = row.ids[1 : row.answer_from - 1], row.ids[row.answer_from - 1 : -1]
        assert any(first[i : i + len(again)] == again for i in range(len(first)))


def test_rows_are_read_from_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"input": "a", "output": "x"}\n'
        '{"input": {"hero": "b"}, "output": ["x", "y"]}\n'
        '{"input": "c", "output": {"amount": 1.5}}\n'
    )
    assert read_examples(path) == [
        Example("a", "x"),
        Example({"hero": "b"}, ("x", "y")),
        Example("c", '{"amount":1.5}'),
    ]


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "a", "output": "x"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2"):
        read_examples(path)


def test_the_hash_of_rows_depends_on_their_order_and_content() -> None:
    one, other = Example("a", "x"), Example("b", "x")
    assert rows_sha256([one, other]) != rows_sha256([other, one])
    assert rows_sha256([one]) == rows_sha256([Example("a", "x")])
