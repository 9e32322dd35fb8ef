"""Figures of quality mean what their names say."""

from __future__ import annotations

import torch

from server.tuning import evaluate
from server.tuning.decode import Written
from server.types import Example
from tests.tuning import toys


def test_extraction_counts_whole_answers_and_fields() -> None:
    truth = Example("", '{"vendor":"A","amount":12.50}')
    texts = ['{"vendor":"A","amount":12.5}', '{"vendor":"B","amount":12.5}', "no JSON", "[1]"]
    metrics = evaluate.extraction([truth] * 4, [Written(text, True) for text in texts])
    assert metrics == {
        "exact_match": 0.25,
        "valid_json": 0.5,
        "accuracy_vendor": 0.25,
        "accuracy_amount": 0.5,
    }


def test_generation_looks_for_what_was_asked() -> None:
    asked = Example({"hero": "a fox", "place": "the sea"}, "")
    written = [Written("A fox saw the sea.", True), Written("A hen by the sea", False)]
    metrics = evaluate.generation([asked, asked], written, ("hero", "place"))
    assert metrics == {"ended": 0.5, "mentions_hero": 0.5, "mentions_place": 1.0}


def test_tagging_weighs_hits_against_all_that_was_said() -> None:
    truth = torch.tensor([[1, 0], [1, 1]])
    scores = torch.tensor([[0.9, 0.8], [0.7, 0.6]])
    assert evaluate.tagging(truth, scores) == {"exact_match": 0.5, "micro_f1": 0.8571}


def test_the_baseline_learns_easy_rows() -> None:
    rows = toys.sorting_rows()
    assert evaluate.classification_baseline(rows.train, rows.test)["accuracy"] >= 0.95
