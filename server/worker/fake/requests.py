"""Reads and refuses requests as vLLM does: its statuses, and the shape of its error bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.types import Choose, Decoding, Sample, ScoreTokens
from server.worker.fake.answers import Encode
from server.worker.wire import TOP_LOGPROBS

MAX_PROMPTS = 1024
MAX_SCORED_TOKENS = 1024
"""Stock vLLM takes 128; the plugin that our workers load (`server.engine`) lifts that."""


class _StructuredOutputs(BaseModel):
    json_: dict[str, Any] | None = Field(default=None, alias="json")
    choice: list[str] | None = Field(default=None, min_length=1)


class _StreamOptions(BaseModel):
    include_usage: bool = False


class CompletionRequest(BaseModel):
    """The part of vLLM's request that the fake heeds; like the engine, it ignores the rest."""

    model_config = ConfigDict(extra="ignore")

    model: str
    prompt: list[list[int]] | list[int] | list[str] | str = Field(min_length=1)
    max_tokens: int = Field(default=16, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    seed: int | None = None
    logprobs: int | None = Field(default=None, ge=0, le=TOP_LOGPROBS)
    logprob_token_ids: list[int] | None = Field(default=None, max_length=MAX_SCORED_TOKENS)
    allowed_token_ids: list[int] | None = Field(default=None, min_length=1)
    structured_outputs: _StructuredOutputs | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that the fake is going to answer."""

    request: CompletionRequest
    prompts: tuple[tuple[int, ...], ...]
    decodings: tuple[Decoding, ...]
    """One a prompt: a long prompt leaves less room for the completion."""


class RefusalError(Exception):
    """A request ends with an error; `body` is vLLM's."""

    def __init__(
        self, status: int, message: str, type_: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": type_, "param": param, "code": status}}


def read(
    body: bytes, models: Sequence[str], *, encode: Encode, max_model_len: int, vocabulary: int
) -> Ask:
    """Return what a request asks.

    Raises:
        RefusalError: vLLM would refuse it, too.
    """
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        raise RefusalError(400, f"{param}: {first['msg']}", param=param) from None
    if request.model not in models:
        message = f"The model `{request.model}` does not exist. Valid aliases: {', '.join(models)}."
        raise RefusalError(404, message, "NotFoundError", "model")
    _check_ids(request, vocabulary)
    prompts = tuple(_prompts(request, encode))
    if len(prompts) > MAX_PROMPTS:
        raise RefusalError(400, f"prompt list length {len(prompts)} exceeds {MAX_PROMPTS}")
    for prompt in prompts:
        _check_prompt(prompt, max_model_len, vocabulary)
    rooms = (min(request.max_tokens, max_model_len - len(prompt)) for prompt in prompts)
    return Ask(request, prompts, tuple(_decoding(request, room) for room in rooms))


def _prompts(request: CompletionRequest, encode: Encode) -> list[tuple[int, ...]]:
    if isinstance(request.prompt, str):
        return [tuple(encode(request.prompt))]
    if all(isinstance(part, int) for part in request.prompt):
        return [tuple(part for part in request.prompt if isinstance(part, int))]
    return [
        tuple(encode(part)) if isinstance(part, str) else tuple(part)
        for part in request.prompt
        if not isinstance(part, int)
    ]


def _check_prompt(prompt: tuple[int, ...], max_model_len: int, vocabulary: int) -> None:
    if not prompt:
        raise RefusalError(400, "The decoder prompt cannot be empty")
    if len(prompt) >= max_model_len:
        raise RefusalError(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your "
            f"prompt contains {len(prompt)} input tokens.",
            param="input_tokens",
        )
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise RefusalError(400, "Token id is out of vocabulary")


def _check_ids(request: CompletionRequest, vocabulary: int) -> None:
    for name in ("logprob_token_ids", "allowed_token_ids"):
        ids = getattr(request, name) or ()
        if not all(0 <= token_id < vocabulary for token_id in ids):
            raise RefusalError(400, f"{name} contains out-of-vocab token ids", param=name)
    if request.logprob_token_ids and request.logprobs is None:
        raise RefusalError(
            400, "when using `logprob_token_ids`, `logprobs` must be set.", param="logprobs"
        )


def _decoding(request: CompletionRequest, max_tokens: int) -> Decoding:
    structured = request.structured_outputs
    if request.logprob_token_ids:
        return ScoreTokens(tuple(request.logprob_token_ids))
    if structured is not None and structured.choice is not None:
        return Choose(tuple(structured.choice), max_tokens)
    return Sample(
        max_tokens,
        request.temperature,
        request.top_p,
        request.top_k,
        request.repetition_penalty,
        request.seed,
        structured.json_ if structured is not None else None,
    )
