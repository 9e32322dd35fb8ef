"""Quality on held-out rows, and a simple model beside it on the same rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from transformers import Gemma3ForCausalLM

from server.tuning.dataset import Row, in_order
from server.tuning.decode import READ_TOKENS, Written
from server.tuning.objectives import hidden_states
from server.types import Example

BASELINE = "TF-IDF + logistic regression"


def classification(truth: Sequence[int], chosen: Sequence[int]) -> dict[str, float]:
    """Return accuracy and macro-averaged F1."""
    return {
        "accuracy": round(float(accuracy_score(truth, chosen)), 4),
        "macro_f1": round(float(f1_score(truth, chosen, average="macro", zero_division=0)), 4),
    }


def classification_baseline(train: Sequence[Example], test: Sequence[Example]) -> dict[str, float]:
    """Return the figures of TF-IDF with logistic regression, trained on the same rows."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    model.fit([_text(example) for example in train], [example.output for example in train])
    names = sorted({str(example.output) for example in (*train, *test)})
    chosen = model.predict([_text(example) for example in test])
    return classification(
        [names.index(str(example.output)) for example in test],
        [names.index(str(name)) for name in chosen],
    )


def tagging(truth: torch.Tensor, scores: torch.Tensor) -> dict[str, float]:
    """Return the share of rows with every label right, and micro-averaged F1.

    (rows, labels) of 0 and 1, and of scores that apply from one half on.
    """
    chosen = (scores >= 0.5).long()
    hits = int((chosen * truth).sum())
    asked = int(truth.sum()) + int(chosen.sum())
    return {
        "exact_match": round((chosen == truth).all(dim=1).float().mean().item(), 4),
        "micro_f1": round(2 * hits / asked if asked else 1.0, 4),
    }


def extraction(examples: Sequence[Example], written: Sequence[Written]) -> dict[str, float]:
    """Return how often the whole JSON, and each field of it, is right."""
    truths = [json.loads(str(example.output)) for example in examples]
    answers = [_json_object(one.text) for one in written]
    pairs = list(zip(truths, answers, strict=True))
    metrics = {
        "exact_match": _share([truth == answer for truth, answer in pairs]),
        "valid_json": _share([bool(answer) for answer in answers]),
    }
    for field in truths[0]:
        right = [answer.get(field) == truth[field] for truth, answer in pairs]
        metrics[f"accuracy_{field}"] = _share(right)
    return metrics


def generation(
    examples: Sequence[Example], written: Sequence[Written], mentioned: Sequence[str]
) -> dict[str, float]:
    """Return how often a text ended by itself, and named what the input's fields say."""
    metrics = {"ended": _share([one.ended for one in written])}
    for field in mentioned:
        metrics[f"mentions_{field}"] = _share(
            [
                str(_field(example, field)).lower() in one.text.lower()
                for example, one in zip(examples, written, strict=True)
            ]
        )
    return metrics


@torch.inference_mode()  # type: ignore[untyped-decorator]
def perplexity(model: Gemma3ForCausalLM, rows: Sequence[Row]) -> float:
    """Return the exponential of the mean loss per answer token."""
    loss, tokens = 0.0, 0
    for _, batch in in_order(rows, READ_TOKENS):
        logits = model.lm_head(hidden_states(model, batch.ids)).log_softmax(-1)
        for line, ids, row in zip(logits, batch.ids, batch.rows, strict=True):
            span = slice(row.answer_from, len(row.ids))
            told = line[row.answer_from - 1 : len(row.ids) - 1]
            loss -= told.gather(1, ids[span, None]).sum().item()
            tokens += len(row.ids) - row.answer_from
    return round(math.exp(loss / tokens), 3)


def _text(example: Example) -> str:
    if isinstance(example.input, str):
        return example.input
    return " ".join(str(value) for value in example.input.values())


def _field(example: Example, name: str) -> Any:
    return "" if isinstance(example.input, str) else example.input.get(name, "")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _share(right: Sequence[bool]) -> float:
    return round(sum(right) / len(right), 4)
