"""What a completion means: calibrated scores, checked JSON or text, by the task's kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jsonschema import Draft202012Validator

from server.errors import InvalidOutput, WorkerError
from server.specialist import SpecialistCard
from server.tasks.calibration import by_label, choice_logprobs, sigmoid_against, softmax
from server.types import (
    Choose,
    Classified,
    Completion,
    Decoding,
    Extracted,
    Generated,
    Output,
    Sample,
    ScoreTokens,
    Tagged,
)

Decode = Callable[[Sequence[int]], str]

# A second attempt at valid JSON must not repeat the first: it samples a little.
SECOND_TEMPERATURE = 0.5
SECOND_SEED = 2


class Reader(Protocol):
    """How one specialist is asked, and how its tokens are read."""

    @property
    def decoding(self) -> Decoding:
        """What the engine is asked to do after the prompt."""

    @property
    def second_decoding(self) -> Decoding | None:
        """What to ask when `read` refused the first completion; None gives up at once."""

    def read(self, completion: Completion) -> Output:
        """Return what the completion means.

        Raises:
            InvalidOutput: it breaks the specialist's own schema.
            WorkerError: the engine left out what it was asked for.
        """


class TokenClassifier:
    """One token per label: the whole distribution in one prefill."""

    second_decoding = None

    def __init__(self, card: SpecialistCard) -> None:
        self._labels = [label.label for label in card.labels]
        self._token_ids = [
            token_id for one in card.labels if (token_id := one.token_id) is not None
        ]
        self._temperature = card.calibration.temperature
        self.decoding = ScoreTokens(tuple(self._token_ids))

    def read(self, completion: Completion) -> Classified:
        """Return the softmax over the labels' tokens at the card's temperature."""
        logprobs = _asked_logprobs(completion, self._token_ids)
        return _classified(self._labels, softmax(logprobs, self._temperature))


class WordClassifier:
    """A fine-tune that writes its label as words, chosen under a mask."""

    second_decoding = None

    def __init__(self, card: SpecialistCard, decode: Decode) -> None:
        self._labels = [label.label for label in card.labels]
        self._words = tuple(words for one in card.labels if (words := one.words) is not None)
        self._temperature = card.calibration.temperature
        self._decode = decode
        self.decoding = Choose(self._words, card.sampling.max_tokens)

    def read(self, completion: Completion) -> Classified:
        """Return each label's probability among the allowed ones, then the card's temperature."""
        if not completion.text.strip().startswith(tuple(word.strip() for word in self._words)):
            raise InvalidOutput("the specialist wrote something that is none of its labels")
        # Only at the front: a token that is one blank tells "new york" from "newark".
        logprobs = choice_logprobs(
            [word.lstrip() for word in self._words],
            completion.steps,
            lambda ids: self._decode(ids).lstrip(),
        )
        return _classified(self._labels, softmax(logprobs, self._temperature))


class Tagger:
    """One token per label against the token for "none": independent probabilities."""

    second_decoding = None

    def __init__(self, card: SpecialistCard) -> None:
        assert card.none_token_id is not None
        self._none = card.none_token_id
        self._labels = card.labels
        self._token_ids = [
            token_id for one in card.labels if (token_id := one.token_id) is not None
        ]
        self._temperature = card.calibration.temperature
        self.decoding = ScoreTokens((*self._token_ids, self._none))

    def read(self, completion: Completion) -> Tagged:
        """Return sigmoid(logit(label) - logit(none)) of every label, and those that apply."""
        *logprobs, none = _asked_logprobs(completion, [*self._token_ids, self._none])
        scores = [sigmoid_against(value, none, self._temperature) for value in logprobs]
        applying = zip(self._labels, scores, strict=True)
        return Tagged(
            labels=tuple(label.label for label, score in applying if score >= label.threshold),
            scores=by_label([label.label for label in self._labels], scores),
        )


class Extractor:
    """JSON that the engine forces under a schema and the gateway checks again."""

    def __init__(self, card: SpecialistCard) -> None:
        assert card.schema_ is not None
        self._validator = Draft202012Validator(card.schema_)
        sampling = card.sampling
        self.decoding = sample(card)
        self.second_decoding = Sample(
            max_tokens=sampling.max_tokens,
            temperature=max(sampling.temperature, SECOND_TEMPERATURE),
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            seed=SECOND_SEED,
            schema=card.schema_,
        )

    def read(self, completion: Completion) -> Extracted:
        """Return the data, valid under the schema."""
        if completion.finish_reason == "length":
            raise InvalidOutput(
                f"the specialist's JSON did not end within {completion.completion_tokens} tokens"
            )
        try:
            # The engine's JSON grammar lets control characters stand bare inside strings.
            data = json.loads(completion.text, parse_constant=_no_constant, strict=False)
        except (ValueError, RecursionError):
            raise InvalidOutput("the specialist's answer is no JSON") from None
        fault = next(self._validator.iter_errors(data), None)
        if fault is not None:
            where = "".join(f"[{part!r}]" for part in fault.absolute_path) or "the whole"
            raise InvalidOutput(
                f"the specialist's answer breaks the task's schema at {where} ({fault.validator})"
            )
        return Extracted(data)


class Writer:
    """Text, as the card samples it."""

    second_decoding = None

    def __init__(self, card: SpecialistCard) -> None:
        self.decoding = sample(card)

    def read(self, completion: Completion) -> Generated:
        """Return the text and why it ended."""
        return Generated(completion.text, completion.finish_reason)


def reader(card: SpecialistCard, decode: Decode) -> Reader:
    """Return the reader that fits the card's kind and the way it says its labels."""
    match card.kind:
        case "classify" if card.labels[0].words is not None:
            return WordClassifier(card, decode)
        case "classify":
            return TokenClassifier(card)
        case "tag":
            return Tagger(card)
        case "extract":
            return Extractor(card)
        case "generate":
            return Writer(card)


def sample(card: SpecialistCard) -> Sample:
    """Return the card's sampling as the engine is asked for it."""
    sampling = card.sampling
    return Sample(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        schema=card.schema_,
    )


def _classified(labels: Sequence[str], probabilities: Sequence[float]) -> Classified:
    confidence = max(probabilities)
    return Classified(
        label=labels[probabilities.index(confidence)],
        confidence=confidence,
        scores=by_label(labels, probabilities),
    )


def _asked_logprobs(completion: Completion, token_ids: Sequence[int]) -> list[float]:
    reported = completion.steps[0].logprobs if completion.steps else {}
    if any(token_id not in reported for token_id in token_ids):
        raise WorkerError("the engine did not report every label's log-probability")
    return [reported[token_id] for token_id in token_ids]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
