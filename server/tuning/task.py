"""What a specialist is to be made of: its task, as the card will say it, and its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.specialist import Kind, Piece, Sampling
from server.types import Example, Input

TEXT_INPUT: Mapping[str, Any] = {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class Task:
    """One task, before anything has learned it."""

    name: str
    kind: Kind
    description: str
    prompt: tuple[Piece, ...]
    max_prompt_tokens: int
    labels: tuple[str, ...] = ()
    words: bool = False
    """Labels are written out in words, not said by one token (`classify` only)."""
    schema: Mapping[str, Any] | None = None
    input_schema: Mapping[str, Any] = field(default_factory=lambda: dict(TEXT_INPUT))
    examples: tuple[Input, ...] = ()
    """Inputs that a person can try."""
    sampling: Sampling = field(default_factory=Sampling)
    mentions: tuple[str, ...] = ()
    """`generate` only: fields of the input whose values a good text names."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The examples of one task, split; `test` is looked at once, for the card."""

    name: str
    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
