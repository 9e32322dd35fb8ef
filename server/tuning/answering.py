"""The ways of answering: how each one learns, and how good it turns out to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM

from server.specialist import Calibration, Label
from server.tuning import evaluate
from server.tuning.calibrate import calibrate
from server.tuning.dataset import Encoder, Row
from server.tuning.decode import next_logits, write
from server.tuning.objectives import ChooseLabel, Objective, TagLabels, WriteText
from server.tuning.progress import Progress
from server.tuning.task import Rows, Task
from server.tuning.tokenizer import letter_ids
from server.types import Example, Input

Measured = tuple[dict[str, float], Calibration]


class Answering(Protocol):
    """One way of answering a task, bound to the task and a tokenizer."""

    objective: Objective
    labels: tuple[Label, ...]
    none_token_id: int | None
    probe_ids: tuple[int, ...]
    """Tokens that golden probes always list."""

    def prompt(self, value: Input) -> tuple[int, ...]:
        """Return the prompt for one input."""

    def row(self, example: Example) -> Row:
        """Return the row that teaches one example."""

    def measure(self, model: Gemma3ForCausalLM, rows: Rows, progress: Progress) -> Measured:
        """Return the figures on the test rows, and the calibration fitted on validation rows."""


def answering(task: Task, tokenizer: Tokenizer) -> Answering:
    """Return the task's way of answering."""
    if task.kind == "tag":
        return Tagging(task, tokenizer)
    if task.kind == "classify" and not task.words:
        return Choosing(task, tokenizer)
    return Writing(task, tokenizer)


class Choosing:
    """Says one label with one token."""

    none_token_id: int | None = None

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        tokens = letter_ids(tokenizer, task.labels)
        self._encoder = Encoder(task.prompt, tokenizer)
        self._index = {label: i for i, label in enumerate(task.labels)}
        self.probe_ids = tuple(tokens.values())
        self.labels = tuple(Label(label=name, token_id=i) for name, i in tokens.items())
        self.objective: Objective = ChooseLabel(self.probe_ids)

    def prompt(self, value: Input) -> tuple[int, ...]:
        """Return the prompt for one input."""
        return self._encoder.prompt(value)

    def row(self, example: Example) -> Row:
        """Return the prompt with the index of its label."""
        return self._encoder.labelled(example, self._index)

    def measure(self, model: Gemma3ForCausalLM, rows: Rows, progress: Progress) -> Measured:  # noqa: ARG002
        """Return accuracy and macro-F1, and a temperature."""
        fitted, fitted_truth = self._label_logits(model, rows.validation)
        logits, truth = self._label_logits(model, rows.test)
        metrics = evaluate.classification(truth.tolist(), logits.argmax(-1).tolist())
        return metrics, calibrate(fitted, fitted_truth, logits, truth)

    def _label_logits(
        self, model: Gemma3ForCausalLM, examples: Sequence[Example]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self.row(example) for example in examples]
        truth = torch.tensor([row.labels[0] for row in rows])
        return next_logits(model, rows)[:, list(self.probe_ids)], truth


class Tagging:
    """Weighs each label's token against the token that stands for none."""

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        none, *tokens = letter_ids(tokenizer, ("none of them", *task.labels)).values()
        self._encoder = Encoder(task.prompt, tokenizer)
        self._index = {label: i for i, label in enumerate(task.labels)}
        self.none_token_id: int | None = none
        self.probe_ids = (none, *tokens)
        self.labels = tuple(
            Label(label=name, token_id=i) for name, i in zip(task.labels, tokens, strict=True)
        )
        self.objective: Objective = TagLabels(tokens, none)

    def prompt(self, value: Input) -> tuple[int, ...]:
        """Return the prompt for one input."""
        return self._encoder.prompt(value)

    def row(self, example: Example) -> Row:
        """Return the prompt with the indices of its labels."""
        return self._encoder.labelled(example, self._index)

    def measure(self, model: Gemma3ForCausalLM, rows: Rows, progress: Progress) -> Measured:  # noqa: ARG002
        """Return exact match and micro-F1 at a threshold of one half."""
        asked = [self.row(example) for example in rows.test]
        logits = next_logits(model, asked)[:, list(self.probe_ids)]
        truth = torch.zeros((len(asked), len(self.labels)), dtype=torch.long)
        for line, row in zip(truth, asked, strict=True):
            line[list(row.labels)] = 1
        scores = torch.sigmoid(logits[:, 1:] - logits[:, :1])
        return evaluate.tagging(truth, scores), Calibration()


class Writing:
    """Writes text: JSON, a story, or a label in words."""

    none_token_id: int | None = None

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        self._task, self._tokenizer = task, tokenizer
        self._encoder = Encoder(task.prompt, tokenizer)
        self.objective: Objective = WriteText()
        self.labels = tuple(Label(label=name, words=name) for name in task.labels)
        firsts = [tokenizer.encode(name, add_special_tokens=False).ids[0] for name in task.labels]
        self.probe_ids = tuple(dict.fromkeys(firsts))

    def prompt(self, value: Input) -> tuple[int, ...]:
        """Return the prompt for one input."""
        return self._encoder.prompt(value)

    def row(self, example: Example) -> Row:
        """Return the prompt followed by its answer."""
        return self._encoder.answered(example, str(example.output))

    def measure(self, model: Gemma3ForCausalLM, rows: Rows, progress: Progress) -> Measured:
        """Return the figures of the texts written for the test rows."""
        prompts = [self.prompt(example.input) for example in rows.test]
        written = write(
            model,
            self._tokenizer,
            prompts,
            self._task.sampling,
            stage=f"{self._task.name}: writing test answers",
            progress=progress,
        )
        if self._task.kind == "extract":
            return evaluate.extraction(rows.test, written), Calibration()
        if self._task.kind == "classify":
            names = [*self._task.labels, "neither of them"]
            truth = [names.index(str(example.output)) for example in rows.test]
            said = [names.index(w.text) if w.text in names else len(names) - 1 for w in written]
            return evaluate.classification(truth, said), Calibration()
        metrics = evaluate.generation(rows.test, written, self._task.mentions)
        metrics["perplexity"] = evaluate.perplexity(model, [self.row(e) for e in rows.test])
        return metrics, Calibration()
