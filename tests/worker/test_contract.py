"""What a worker does, fake or engine: one suite, so that the fake cannot drift from the truth."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from server.errors import DeadlineExceeded, WorkerError, WorkerRefused
from server.types import Choose, Completion, Decoding, Prompt, Sample, ScoreTokens
from server.worker.client import WorkerClient
from server.worker.probe import GoldenProbe, prove, total_variation
from server.worker.standing import Proved, Refused
from tests.tiny_model import LABEL_IDS
from tests.worker.conftest import MAX_MODEL_LEN, Subject

SCORE = ScoreTokens(LABEL_IDS)
PROMPTS = [Prompt((2, 300 + n, 301, 302 + n % 3)) for n in range(12)]
NOISE = 0.05
"""Total variation: a batch is computed in another order than a prompt alone, in bf16."""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "sure": {"type": "boolean"},
        "kind": {"enum": ["a", "b"]},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
    },
    "required": ["name", "sure", "kind", "tags"],
    "additionalProperties": False,
}


class Asker:
    """Asks the worker under test."""

    def __init__(self, client: WorkerClient, subject: Subject) -> None:
        self.client = client
        self.subject = subject

    async def all(
        self, prompts: list[Prompt], decoding: Decoding, model: str | None = None
    ) -> tuple[Completion, ...]:
        """Complete `prompts` in one call."""
        name = self.subject.base if model is None else model
        return await self.client.complete(
            self.subject.url, name, prompts, decoding, timeout_seconds=60
        )

    async def one(self, prompt: Prompt, decoding: Decoding, model: str | None = None) -> Completion:
        """Complete one prompt."""
        (completion,) = await self.all([prompt], decoding, model)
        return completion

    async def metric(self, name: str) -> float:
        """Read one of vLLM's own figures."""
        async with httpx.AsyncClient(trust_env=False) as http:
            lines = (await http.get(f"{self.subject.url}/metrics")).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


@pytest.fixture
def ask(client: WorkerClient, subject: Subject) -> Asker:
    return Asker(client, subject)


def logprobs(completion: Completion) -> dict[int, float]:
    return dict(completion.steps[0].logprobs)


async def test_it_is_healthy_and_serves_its_names(client: WorkerClient, subject: Subject) -> None:
    await client.health(subject.url, timeout_seconds=10)
    assert await client.models(subject.url, timeout_seconds=10) == set(subject.models)


async def test_scores_are_of_exactly_the_tokens_asked_for(ask: Asker) -> None:
    completion = await ask.one(PROMPTS[0], SCORE)
    scores = logprobs(completion)
    assert set(scores) == set(LABEL_IDS)
    assert all(value <= 0 for value in scores.values())
    assert sum(math.exp(value) for value in scores.values()) <= 1 + 1e-3
    assert completion.steps[0].token_id == max(scores, key=lambda token_id: scores[token_id])
    assert (completion.prompt_tokens, completion.completion_tokens) == (4, 1)


async def test_a_task_may_have_hundreds_of_labels(ask: Asker) -> None:
    many = ScoreTokens(tuple(range(6, 406)))
    assert set(logprobs(await ask.one(PROMPTS[0], many))) == set(many.token_ids)


async def test_every_model_answers_differently_and_ever_the_same(ask: Asker) -> None:
    answers = {name: await ask.all(PROMPTS, SCORE, name) for name in ask.subject.models}
    again = {name: await ask.all(PROMPTS, SCORE, name) for name in ask.subject.models}
    for name in ask.subject.models:
        for first, second in zip(answers[name], again[name], strict=True):
            assert total_variation(logprobs(first), logprobs(second)) < NOISE
    for one, other in (("one@00000001", "base"), ("two@00000002", "one@00000001")):
        pairs = zip(answers[one], answers[other], strict=True)
        assert max(total_variation(logprobs(a), logprobs(b)) for a, b in pairs) > 2 * NOISE


async def test_a_list_is_answered_in_its_order(ask: Asker) -> None:
    together = await ask.all(PROMPTS, SCORE)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        alone = await ask.one(prompt, SCORE)
        assert total_variation(logprobs(alone), logprobs(completion)) < NOISE


async def test_each_prompt_has_its_own_counts(ask: Asker) -> None:
    prompts = [Prompt(tuple(range(20, 20 + n))) for n in (1, 30, 7)]
    completions = await ask.all(prompts, Sample(max_tokens=4))
    assert [completion.prompt_tokens for completion in completions] == [1, 30, 7]
    for completion in completions:
        assert 1 <= completion.completion_tokens <= 4
        assert (completion.finish_reason == "length") == (completion.completion_tokens == 4)


async def test_no_prompts_are_no_call(ask: Asker) -> None:
    assert await ask.all([], SCORE) == ()


async def test_a_choice_is_one_of_the_choices(ask: Asker) -> None:
    for completion in await ask.all(PROMPTS[:4], Choose(("yes", "no", "yesterday"), 12)):
        assert completion.text in ("yes", "no", "yesterday")
        assert completion.finish_reason == "stop"
        assert completion.completion_tokens == len(completion.steps)
        for step in completion.steps:
            assert step.token_id in step.logprobs
            assert sum(map(math.exp, step.logprobs.values())) == pytest.approx(1, abs=1e-2)


async def test_a_choice_that_does_not_fit_is_cut(ask: Asker) -> None:
    completion = await ask.one(PROMPTS[0], Choose(("the long label", "the label is long"), 1))
    assert completion.finish_reason == "length"
    assert len(completion.steps) == 1


async def test_json_is_valid_under_its_schema(ask: Asker) -> None:
    for completion in await ask.all(PROMPTS[:4], Sample(max_tokens=120, schema=SCHEMA)):
        assert completion.finish_reason == "stop"
        # Not strict: in a string of bounded length, xgrammar lets control characters through.
        Draft202012Validator(SCHEMA).validate(json.loads(completion.text, strict=False))


async def test_a_seed_repeats_what_it_drew(ask: Asker) -> None:
    decoding = Sample(max_tokens=8, temperature=0.8, top_p=0.9, top_k=50, seed=7)
    assert await ask.one(PROMPTS[0], decoding) == await ask.one(PROMPTS[0], decoding)


@pytest.mark.parametrize("schema", [None, SCHEMA])
async def test_a_stream_is_the_completion_in_pieces(
    ask: Asker, schema: dict[str, Any] | None
) -> None:
    decoding = Sample(max_tokens=40, schema=schema)
    whole = await ask.one(PROMPTS[1], decoding, ask.subject.adapters[0])
    stream = ask.client.stream(
        ask.subject.url, ask.subject.adapters[0], PROMPTS[1], decoding, timeout_seconds=60
    )
    *pieces, last = [chunk async for chunk in stream]
    assert len(pieces) > 1
    assert "".join(chunk.text for chunk in (*pieces, last)) == whole.text
    assert all(chunk.finish_reason is None for chunk in pieces)
    assert last.finish_reason == whole.finish_reason
    assert (last.prompt_tokens, last.completion_tokens) == (4, whole.completion_tokens)


async def test_leaving_a_stream_early_stops_the_engine(ask: Asker) -> None:
    before = await ask.metric("vllm:generation_tokens_total")
    decoding = Sample(max_tokens=200, schema={"type": "string", "minLength": 190})
    stream = ask.client.stream(
        ask.subject.url, ask.subject.base, PROMPTS[0], decoding, timeout_seconds=60
    )
    async with aclosing(stream):
        async for _ in stream:
            break
    async with asyncio.timeout(30):
        while await ask.metric("vllm:num_requests_running") > 0:
            pass  # each look takes a round trip
    assert await ask.metric("vllm:generation_tokens_total") - before < 150


async def test_a_deadline_is_kept_and_costs_nobody_else(ask: Asker) -> None:
    with pytest.raises(DeadlineExceeded):
        await ask.client.complete(
            ask.subject.url, ask.subject.base, PROMPTS, SCORE, timeout_seconds=0.0
        )
    assert logprobs(await ask.one(PROMPTS[0], SCORE))


async def test_an_unknown_model_is_named(ask: Asker) -> None:
    with pytest.raises(WorkerError, match=r"404.*`nobody@0`") as raised:
        await ask.one(PROMPTS[0], SCORE, "nobody@0")
    assert raised.value.retryable  # another replica may have it
    with pytest.raises(WorkerError, match="404"):
        await anext(
            ask.client.stream(
                ask.subject.url, "nobody@0", PROMPTS[0], Sample(4), timeout_seconds=60
            )
        )


@pytest.mark.parametrize(
    ("prompt", "decoding"),
    [
        (Prompt(tuple(range(2, 302))), SCORE),
        (Prompt((2,) * MAX_MODEL_LEN), SCORE),
        (Prompt(()), SCORE),
        (Prompt((2, 99_999)), SCORE),
        (PROMPTS[0], ScoreTokens((6, 99_999))),
        (PROMPTS[0], ScoreTokens(())),
        (PROMPTS[0], ScoreTokens(tuple(n % 500 for n in range(1025)))),
        (PROMPTS[0], Choose((), 4)),
        (PROMPTS[0], Sample(max_tokens=0)),
        (PROMPTS[0], Sample(max_tokens=4, temperature=-1.0)),
        (PROMPTS[0], Sample(max_tokens=4, top_p=0.0)),
    ],
)
async def test_what_cannot_be_answered_is_refused_for_good(
    ask: Asker, prompt: Prompt, decoding: Decoding
) -> None:
    with pytest.raises(WorkerRefused) as raised:
        await ask.all([PROMPTS[0], prompt], decoding)
    assert not raised.value.retryable
    assert len(raised.value.message) < 600


async def test_a_prompt_that_nearly_fills_the_context_leaves_little_room(ask: Asker) -> None:
    completion = await ask.one(Prompt((300,) * (MAX_MODEL_LEN - 3)), Sample(max_tokens=20))
    assert 1 <= completion.completion_tokens <= 3


async def test_many_callers_get_their_own_answers(ask: Asker) -> None:
    calls = [(prompt, name) for prompt in PROMPTS for name in ask.subject.models]
    alone = [logprobs(await ask.one(prompt, SCORE, name)) for prompt, name in calls]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask.one(prompt, SCORE, name)) for prompt, name in calls]
    for expected, task in zip(alone, tasks, strict=True):
        assert total_variation(logprobs(task.result()), expected) < NOISE


@pytest.mark.parametrize("request_id", ["inf_1", "two\r\nlines: here", "ünï", "x" * 10_000, ""])
async def test_no_request_id_breaks_a_call(ask: Asker, request_id: str) -> None:
    (completion,) = await ask.client.complete(
        ask.subject.url,
        ask.subject.base,
        PROMPTS[:1],
        SCORE,
        timeout_seconds=60,
        request_id=request_id,
    )
    assert completion.completion_tokens == 1


async def test_golden_probes_tell_an_adapter_from_its_base(ask: Asker) -> None:
    adapter, base = ask.subject.adapters[0], ask.subject.base
    answers = await ask.all(PROMPTS, SCORE, adapter)
    probes = [GoldenProbe(p, logprobs(c)) for p, c in zip(PROMPTS, answers, strict=True)]
    url = ask.subject.url
    assert await prove(ask.client, url, adapter, probes, base=base) == Proved(adapter)
    for other in (base, ask.subject.adapters[1]):
        outcome = await prove(ask.client, url, other, probes, base=base)
        assert isinstance(outcome, Refused)
        assert "total variation" in outcome.reason
