"""The bodies of the fake worker's answers, as vLLM writes them."""

from __future__ import annotations

import time
from typing import Any

from server.worker.fake.answers import IMPOSSIBLE, Reply, Token
from server.worker.fake.requests import Ask


def completion(number: int, ask: Ask, replies: list[Reply]) -> dict[str, Any]:
    """Return the body of a call that was not streamed."""
    return {
        "id": f"cmpl-{number}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": ask.request.model,
        "choices": [
            {
                "index": index,
                "text": one.text,
                "finish_reason": one.finish_reason,
                "logprobs": _logprobs(ask, one.tokens),
                "token_ids": _token_ids(ask, one.tokens),
            }
            for index, one in enumerate(replies)
        ],
        "usage": usage(ask, replies),
    }


def stream_choice(index: int, one: Reply, at: int) -> dict[str, Any]:
    """Return what one event of a stream says: a token of one reply."""
    last = at == len(one.tokens) - 1
    return {
        "index": index,
        "text": one.tokens[at].text,
        "finish_reason": one.finish_reason if last else None,
    }


def _logprobs(ask: Ask, tokens: tuple[Token, ...]) -> dict[str, Any] | None:
    if ask.request.logprobs is None:
        return None
    named = "token_id:{}".format if ask.request.return_tokens_as_token_ids else "<{}>".format
    return {
        "tokens": [named(token.id) for token in tokens],
        "token_logprobs": [max(token.logprobs.get(token.id, 0.0), IMPOSSIBLE) for token in tokens],
        "top_logprobs": [
            {named(token_id): value for token_id, value in token.logprobs.items()}
            for token in tokens
        ],
    }


def _token_ids(ask: Ask, tokens: tuple[Token, ...]) -> list[int] | None:
    return [token.id for token in tokens] if ask.request.return_token_ids else None


def usage(ask: Ask, replies: list[Reply]) -> dict[str, int]:
    """Return the counts of a whole call, all its prompts together."""
    prompt_tokens = sum(len(prompt) for prompt in ask.prompts)
    completion_tokens = sum(len(one.tokens) for one in replies)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
