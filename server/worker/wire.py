"""What vLLM's `/v1/completions` is asked, and what its answers must look like: pure, no I/O.

vLLM takes defaults from the model's generation config, so every sampling parameter is written
out: an answer must not depend on a file that came with a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from server.errors import WorkerError
from server.types import Choose, Completion, Decoding, FinishReason, Prompt, ScoreTokens, Step

TOP_LOGPROBS = 20
"""How many tokens a `Choose` step reports (vLLM's default --max-logprobs)."""
MASKED = -9999.0
"""What vLLM writes for a probability of zero, since JSON has no infinity."""

_ID_PREFIX = "token_id:"


class _Read(BaseModel):
    # Fields that are not named here are vLLM's own business.
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Logprobs(_Read):
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class _Choice(_Read):
    index: int
    text: str
    finish_reason: FinishReason
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _Response(_Read):
    choices: list[_Choice]


class _StreamChoice(_Read):
    text: str
    finish_reason: FinishReason | None = None


class _Usage(_Read):
    completion_tokens: int


class _Error(_Read):
    message: str


class _Event(_Read):
    choices: list[_StreamChoice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Refusal(_Read):
    error: _Error


class _Model(_Read):
    id: str


class _Models(_Read):
    data: list[_Model]


_Shape = TypeVar("_Shape", bound=_Read)


def request_body(
    model: str, prompts: Sequence[Prompt], decoding: Decoding, *, stream: bool = False
) -> bytes:
    """Return the JSON of one call for `prompts`, which all get the same decoding."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": [prompt.token_ids for prompt in prompts],
        **_decoding_fields(decoding),
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body, separators=(",", ":")).encode()


def _decoding_fields(decoding: Decoding) -> dict[str, Any]:
    greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    if isinstance(decoding, ScoreTokens):
        return {
            **greedy,
            "max_tokens": 1,
            "logprobs": 1,
            "logprob_token_ids": decoding.token_ids,
            "allowed_token_ids": decoding.token_ids,
            "return_tokens_as_token_ids": True,
        }
    if isinstance(decoding, Choose):
        return {
            **greedy,
            "max_tokens": decoding.max_tokens,
            "logprobs": TOP_LOGPROBS,
            "structured_outputs": {"choice": decoding.choices},
            "return_tokens_as_token_ids": True,
        }
    fields: dict[str, Any] = {
        "max_tokens": decoding.max_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "repetition_penalty": decoding.repetition_penalty,
        # `usage` counts the whole call; the token ids count each prompt's own completion.
        "return_token_ids": True,
    }
    if decoding.seed is not None:
        fields["seed"] = decoding.seed
    if decoding.schema is not None:
        # vLLM heeds `disable_any_whitespace` on its command line only, never in a request.
        fields["structured_outputs"] = {"json": decoding.schema}
    return fields


def completions(
    body: bytes, prompts: Sequence[Prompt], decoding: Decoding
) -> tuple[Completion, ...]:
    """Read the answer to a call, one completion a prompt, in the prompts' order.

    Raises:
        WorkerError: the body is not what was asked for.
    """
    choices = sorted(_read(_Response, body).choices, key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(len(prompts))):
        raise malformed(f"{len(choices)} choices, not one for each of {len(prompts)} prompts")
    return tuple(
        _completion(choice, prompt, decoding)
        for choice, prompt in zip(choices, prompts, strict=True)
    )


def _completion(choice: _Choice, prompt: Prompt, decoding: Decoding) -> Completion:
    if isinstance(decoding, ScoreTokens | Choose):
        steps = _steps(choice.logprobs)
        count = len(steps)
    else:
        if choice.token_ids is None:
            raise malformed("no `token_ids` beside the text")
        steps = ()
        count = len(choice.token_ids)
    if isinstance(decoding, ScoreTokens):
        if len(steps) != 1 or set(steps[0].logprobs) != set(decoding.token_ids):
            raise malformed("not the log-probabilities of the tokens that were asked for")
    elif isinstance(decoding, Choose):
        steps = tuple(Step(step.token_id, _possible(step.logprobs)) for step in steps)
    return Completion(choice.text, choice.finish_reason, len(prompt.token_ids), count, steps)


def _steps(logprobs: _Logprobs | None) -> tuple[Step, ...]:
    if logprobs is None or len(logprobs.tokens) != len(logprobs.top_logprobs):
        raise malformed("no log-probabilities beside the text")
    return tuple(
        Step(_token_id(token), {_token_id(name): value for name, value in top.items()})
        for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True)
    )


def _possible(logprobs: Mapping[int, float]) -> dict[int, float]:
    """Leave out the tokens that the grammar forbids; the engine lists some to fill its quota."""
    return {token_id: value for token_id, value in logprobs.items() if value > MASKED}


def _token_id(name: str) -> int:
    digits = name.removeprefix(_ID_PREFIX)
    if digits == name or not (digits.isascii() and digits.isdigit()):
        raise malformed("a token that is not written as `token_id:<number>`")
    return int(digits)


class StreamReader:
    """Follows the events of one streamed completion and knows whether it was whole."""

    def __init__(self) -> None:
        self.finish_reason: FinishReason | None = None
        self.completion_tokens: int | None = None
        self._done = False

    def feed(self, line: bytes) -> str:
        """Return the text that one line of the stream adds.

        Raises:
            WorkerError: the line is an error of the engine's, or malformed.
        """
        name, _, data = line.partition(b":")
        if name != b"data":
            return ""  # blank lines between events, and comments that keep the connection alive
        data = data.strip()
        if data == b"[DONE]":
            self._done = True
            return ""
        event = _read(_Event, data)
        if event.error is not None:
            raise WorkerError(f"the worker broke off: {_short(event.error.message)}")
        if event.usage is not None:
            self.completion_tokens = event.usage.completion_tokens
        for choice in event.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
        return "".join(choice.text for choice in event.choices)

    def outcome(self) -> tuple[FinishReason, int]:
        """Return why the stream finished and how many tokens it brought.

        Raises:
            WorkerError: the stream ended before it was finished.
        """
        if not self._done or self.finish_reason is None or self.completion_tokens is None:
            raise WorkerError("the worker's stream ended before it was finished")
        return self.finish_reason, self.completion_tokens


def model_names(body: bytes) -> frozenset[str]:
    """Read the names out of an answer of `/v1/models`."""
    return frozenset(model.id for model in _read(_Models, body).data)


def refusal(body: bytes) -> str:
    """Return the message of an error body, or an empty text when there is none."""
    try:
        return _short(_Refusal.model_validate_json(body).error.message)
    except ValidationError:
        return ""


def malformed(what: str) -> WorkerError:
    """Return the error for an answer that breaks the protocol."""
    return WorkerError(f"the worker's answer is malformed: {what}")


def _read(shape: type[_Shape], body: bytes) -> _Shape:
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        # Where and what, never the value: it may hold a caller's text.
        first = error.errors(include_input=False, include_context=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        what = "no JSON" if first["type"] == "json_invalid" else first["msg"]
        raise malformed(f"{where}: {what}") from None


def _short(message: str) -> str:
    return message if len(message) <= 500 else f"{message[:499]}…"
