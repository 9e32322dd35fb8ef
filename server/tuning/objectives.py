"""What training makes small: one loss for each way of answering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional
from transformers import Gemma3ForCausalLM

from server.tuning.dataset import Batch

COUNT_STEP = 256


class Objective(Protocol):
    """A loss over one batch."""

    def __call__(self, model: Gemma3ForCausalLM, batch: Batch) -> torch.Tensor:
        """Return the mean loss, a scalar."""


@dataclass(frozen=True, slots=True)
class WriteText:
    """Cross-entropy of every token from `answer_from` on, weighted by row."""

    def __call__(self, model: Gemma3ForCausalLM, batch: Batch) -> torch.Tensor:
        hidden = hidden_states(model, batch.ids)
        weights = torch.zeros(batch.ids.shape)
        for line, row in zip(weights, batch.rows, strict=True):
            line[row.answer_from : len(row.ids)] = row.weight
        # The vocabulary's logits are the dearest part: compute them where they are judged only,
        # in a few sizes (see `dataset.WIDTH_STEP`); what fills a size up weighs nothing.
        judged = weights.flatten().nonzero().squeeze(1)
        filled = functional.pad(judged, (0, -len(judged) % COUNT_STEP), value=0)
        logits = model.lm_head(hidden.flatten(0, 1)[(filled - 1).clamp(min=0)])
        losses = functional.cross_entropy(
            logits.float(), batch.ids.flatten()[filled], reduction="none"
        )
        return (losses * weights.flatten()[filled]).sum() / weights.sum()


@dataclass(frozen=True, slots=True)
class ChooseLabel:
    """Cross-entropy among the label tokens, and a little over the whole vocabulary.

    The second part makes the label tokens the likely ones at all, so that probabilities read
    from the engine, which are over the vocabulary, are not lost in rounding.
    """

    label_ids: Sequence[int]
    vocabulary_weight: float = 0.1
    smoothing: float = 0.02

    def __call__(self, model: Gemma3ForCausalLM, batch: Batch) -> torch.Tensor:
        logits = last_logits(model, batch)
        ids = torch.tensor(self.label_ids)
        target = torch.tensor([row.labels[0] for row in batch.rows])
        among = functional.cross_entropy(logits[:, ids], target, label_smoothing=self.smoothing)
        return among + self.vocabulary_weight * functional.cross_entropy(logits, ids[target])


@dataclass(frozen=True, slots=True)
class TagLabels:
    """Binary cross-entropy of each label's logit against the logit of `none`."""

    label_ids: Sequence[int]
    none_id: int
    vocabulary_weight: float = 0.1

    def __call__(self, model: Gemma3ForCausalLM, batch: Batch) -> torch.Tensor:
        logits = last_logits(model, batch)
        ids = torch.tensor(self.label_ids)
        applies = torch.zeros((len(batch.rows), len(self.label_ids)))
        for line, row in zip(applies, batch.rows, strict=True):
            line[list(row.labels)] = 1.0
        scores = logits[:, ids] - logits[:, self.none_id : self.none_id + 1]
        mass = logits[:, [*self.label_ids, self.none_id]].logsumexp(-1) - logits.logsumexp(-1)
        return (
            functional.binary_cross_entropy_with_logits(scores, applies)
            - self.vocabulary_weight * mass.mean()
        )


def hidden_states(model: Gemma3ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return the last layer's output: (rows, positions, hidden)."""
    output: torch.Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return output


def last_logits(model: Gemma3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the logits of the token after each row: (rows, vocabulary), float32."""
    hidden = hidden_states(model, batch.ids)
    last = torch.tensor([len(row.ids) - 1 for row in batch.rows])
    logits: torch.Tensor = model.lm_head(hidden[torch.arange(len(last)), last])
    return logits.float()
