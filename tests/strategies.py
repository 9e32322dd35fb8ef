"""Hypothesis strategies that several tests draw from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import strategies as st

from server.types import Step
from tests.tiny_model import CONTROL_TOKENS, LABEL_TOKENS

EVERY_CONTROL_TOKEN = (*CONTROL_TOKENS, *LABEL_TOKENS)

texts = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(EVERY_CONTROL_TOKEN),
        st.sampled_from(["\0", "\ufffd", "▁", " ", "\n", "<0x41>", "<end_of_", "turn>", "é", "🦔"]),
    ),
    max_size=8,
).map("".join)
"""Any text that UTF-8 can carry, spellings of control tokens and torn ones among it."""

logprobs = st.floats(min_value=-60, max_value=0)
temperatures = st.floats(min_value=0.05, max_value=20)

toml_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(min_value=-(2**70), max_value=2**70),
        st.floats(),
        st.dates(),
        st.text(max_size=8),
        st.sampled_from(["", "\0", "a" * 300, "../..", "http://", "base", "stable"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=4,
)
"""Whatever a value of a TOML file can be."""


@dataclass(frozen=True)
class WordModel:
    """A random little language model over pieces of the choices, under a mask that allows them.

    Token ids count the pieces; `weights` gives each state (the text so far) its own odds.
    """

    choices: tuple[str, ...]
    pieces: tuple[str, ...]
    seed: int

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return "".join(self.pieces[token_id] for token_id in ids)

    def next_logprobs(self, said: str) -> dict[int, float]:
        """Return the log-probability of every token that the mask allows after `said`."""
        allowed = [
            token_id
            for token_id, piece in enumerate(self.pieces)
            if any(choice.startswith(said + piece) for choice in self.choices)
        ]
        odds = [Random(f"{self.seed}/{said}/{token_id}").random() + 0.01 for token_id in allowed]
        total = math.fsum(odds)
        return {
            token_id: math.log(one / total) for token_id, one in zip(allowed, odds, strict=True)
        }

    def greedy_steps(self, top: int | None = None) -> tuple[Step, ...]:
        """Return the greedy generation, each step with its `top` likeliest tokens (all: None)."""
        steps: list[Step] = []
        said = ""
        while said not in self.choices:
            reported = self.next_logprobs(said)
            likeliest = sorted(reported, key=reported.__getitem__, reverse=True)[:top]
            steps.append(Step(likeliest[0], {one: reported[one] for one in likeliest}))
            said += self.pieces[likeliest[0]]
        return tuple(steps)

    def probability(self, choice: str, said: str = "") -> float:
        """Return the probability that `choice` is generated, by enumeration of every way there."""
        if said == choice:
            return 1.0
        return math.fsum(
            math.exp(logprob) * self.probability(choice, said + self.pieces[token_id])
            for token_id, logprob in self.next_logprobs(said).items()
            if choice.startswith(said + self.pieces[token_id])
        )


_WORDS = st.from_regex(r"[abc]([abc ]{0,4}[abc])?", fullmatch=True)


@st.composite
def word_models(draw: st.DrawFn) -> WordModel:
    """Draw a model whose choices are words of which none begins another."""
    words = draw(st.lists(_WORDS, min_size=2, max_size=5))
    choices = tuple(
        word
        for word in sorted(set(words))
        if not any(other != word and other.startswith(word) for other in words)
    )
    longer = draw(st.lists(st.text("ab c", min_size=2, max_size=3), max_size=6, unique=True))
    return WordModel(choices, ("a", "b", "c", " ", *longer), draw(st.integers(0, 10**6)))
