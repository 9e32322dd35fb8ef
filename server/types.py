"""Frozen values that pass between the stages of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Input: TypeAlias = str | Mapping[str, Any]
"""What a caller asks about: one text, or an object with the task's fields."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled row: an input and the output that a specialist should give."""

    input: Input
    output: str | tuple[str, ...]
    """A label (`classify`), labels (`tag`), JSON text (`extract`) or text (`generate`)."""


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Request:
    """One question of one caller, before anything is known about who will answer it."""

    id: str
    task: str
    input: Input
    deadline: float
    """When the answer is worthless: seconds on `time.monotonic`."""
    subject: str | None = None
    """Sticky key: the same subject always falls to the same variant."""
    variant: str | None = None
    """Forces one variant; None lets the assignment choose."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The token ids that the engine reads; made in the gateway, never by the engine."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoreTokens:
    """Ask for the log-probabilities of exactly these tokens as the next one: one prefill."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choose:
    """Ask for one of these texts; each step reports its most likely tokens."""

    choices: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Ask for text, free or (with `schema`) forced to be JSON under a JSON Schema."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    schema: Mapping[str, Any] | None = None


Decoding: TypeAlias = ScoreTokens | Choose | Sample
"""What the engine is asked to do after reading a prompt."""


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token and the log-probabilities (natural log) reported beside it."""

    token_id: int
    logprobs: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine produced for one prompt."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed completion; the last one carries the reason and the counts."""

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Classified:
    """One label out of the task's labels; `scores` covers all of them and sums to 1."""

    label: str
    confidence: float
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Tagged:
    """Every label that applies; each score is an independent probability."""

    labels: tuple[str, ...]
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Extracted:
    """Data that is valid under the task's JSON Schema."""

    data: Any


@dataclass(frozen=True, slots=True)
class Generated:
    """Text, and why it ended."""

    text: str
    finish_reason: FinishReason


Output: TypeAlias = Classified | Tagged | Extracted | Generated


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took: tokens through the engine, and its share of the replica's price."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_dollars: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost_dollars + other.cost_dollars,
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went, in milliseconds."""

    total: float = 0.0
    queue: float = 0.0
    worker: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One specialist's answer to one request."""

    id: str
    task: str
    variant: str
    specialist: str
    output: Output
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)
    abstained: bool = False
    escalated_to: str | None = None
    cached: bool = False
