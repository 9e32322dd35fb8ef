"""What the fake worker's models say: made from a hash of model and prompt, so ever the same."""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

from server.types import Choose, Decoding, FinishReason, Sample, ScoreTokens
from server.worker.fake.instances import instance

Encode: TypeAlias = Callable[[str], Sequence[int]]
"""Text -> token ids."""

EOS = 1
"""Gemma's end of sequence; as with the engine, it counts as a token and has no text."""
IMPOSSIBLE = -9999.0

_ELSEWHERE = 0.05
"""The share of a distribution that lies outside the tokens that were asked for."""
_WORDS = ("a", "small", "model", "says", "what", "it", "was", "made", "to", "say", "and", "leaves")
_PIECES = re.compile(r"\s?\w+|\W")


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its text, and the log-probabilities reported beside it."""

    text: str
    id: int
    logprobs: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model says to one prompt."""

    tokens: tuple[Token, ...]
    finish_reason: FinishReason

    @property
    def text(self) -> str:
        """All the tokens' text."""
        return "".join(token.text for token in self.tokens)


def encode_words(text: str) -> list[int]:
    """Give each word of `text` a token id of its own; for when there is no tokenizer."""
    return [_number(b"word", piece.encode()) % 200_000 + 1_000 for piece in _PIECES.findall(text)]


def reply(
    model: str,
    prompt: Sequence[int],
    decoding: Decoding,
    *,
    golden: Mapping[int, float] | None = None,
    encode: Encode = encode_words,
) -> Reply:
    """Return what `model` says to `prompt`; `golden` are the log-probabilities it must give."""
    key = blake2b(array("Q", prompt).tobytes(), key=model.encode()[:64], digest_size=16).digest()
    match decoding:
        case ScoreTokens(token_ids):
            return _scored(key, token_ids, golden)
        case Choose(choices, max_tokens):
            return _chosen(key, choices, max_tokens, encode)
        case Sample():
            return _said(key, decoding, encode)


def _scored(key: bytes, token_ids: Sequence[int], golden: Mapping[int, float] | None) -> Reply:
    if golden is not None:
        logprobs = {token_id: golden.get(token_id, -30.0) for token_id in token_ids}
    else:
        logprobs = _distribution(key, token_ids)
    return Reply((Token("", _likeliest(logprobs), logprobs),), "length")


def _chosen(key: bytes, choices: Sequence[str], max_tokens: int, encode: Encode) -> Reply:
    """Walk to a choice token by token, always to the likeliest, as greedy decoding does."""
    spelt = {index: (*encode(choice), EOS) for index, choice in enumerate(choices)}
    shares = {i: math.exp(p) for i, p in _distribution(key, range(len(choices))).items()}
    tokens: list[Token] = []
    while len(spelt) > 1 or len(tokens) < len(next(iter(spelt.values()))):
        at = len(tokens)
        if at == max_tokens:
            break
        total = sum(shares[index] for index in spelt)
        nexts: dict[int, float] = {}
        for index, ids in spelt.items():
            nexts[ids[at]] = nexts.get(ids[at], 0.0) + shares[index] / total
        logprobs = {token_id: math.log(share) for token_id, share in nexts.items()}
        best = _likeliest(logprobs)
        spelt = {index: ids for index, ids in spelt.items() if ids[at] == best}
        tokens.append(Token("", best, logprobs))
    text = choices[next(iter(spelt))]
    whole = tokens[-1].id == EOS
    if not whole:
        text = text[: len(text) * len(tokens) // len(encode(text))]
    first, *rest = tokens
    return Reply((Token(text, first.id, first.logprobs), *rest), "stop" if whole else "length")


def _said(key: bytes, decoding: Sample, encode: Encode) -> Reply:
    if decoding.temperature > 0:
        key = blake2b(key + str(decoding.seed).encode(), digest_size=16).digest()
    if decoding.schema is not None:
        draws = iter(range(1_000_000))
        value = instance(decoding.schema, lambda n: _number(key, next(draws).to_bytes(4)) % n)
        pieces = _PIECES.findall(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    else:
        count = 8 + _number(key, b"length") % 17
        words = (_WORDS[_number(key, bytes([at])) % len(_WORDS)] for at in range(count))
        pieces = _PIECES.findall(" ".join(words))
    tokens = [Token(piece, (encode(piece) or (EOS,))[0], {}) for piece in pieces]
    tokens.append(Token("", EOS, {}))
    if len(tokens) > decoding.max_tokens:
        return Reply(tuple(tokens[: decoding.max_tokens]), "length")
    return Reply(tuple(tokens), "stop")


def _distribution(key: bytes, token_ids: Iterable[int]) -> dict[int, float]:
    """Return log-probabilities, far from flat, that leave a little to the other tokens."""
    logits = {token_id: 5.0 * _number(key, token_id.to_bytes(8)) / 2**64 for token_id in token_ids}
    total = sum(math.exp(logit) for logit in logits.values())
    shift = math.log(1 - _ELSEWHERE) - math.log(total)
    return {token_id: logit + shift for token_id, logit in logits.items()}


def _likeliest(logprobs: Mapping[int, float]) -> int:
    return max(logprobs, key=lambda token_id: logprobs[token_id])


def _number(key: bytes, data: bytes) -> int:
    return int.from_bytes(blake2b(data, key=key, digest_size=8).digest())
