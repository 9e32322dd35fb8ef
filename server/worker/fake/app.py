"""The fake worker as an ASGI app."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from itertools import count
from typing import TypeAlias

from pydantic import ValidationError

from server.worker.fake.answers import Encode, Reply, encode_words, reply
from server.worker.fake.exchange import Exchange, Faults, Receive, Scope, Send, to_json
from server.worker.fake.requests import Ask, RefusalError, read
from server.worker.fake.responses import completion, stream_choice, usage

Golden: TypeAlias = Mapping[tuple[int, ...], Mapping[int, float]]
"""Prompt -> the log-probabilities that its next token must have."""

GEMMA_VOCABULARY = 262_144


class FakeWorker:
    """The app; serves `models` (name -> golden distributions), the first one as the base."""

    def __init__(
        self,
        models: Mapping[str, Golden],
        *,
        faults: Faults | None = None,
        encode: Encode = encode_words,
        max_model_len: int = 8192,
        vocabulary: int = GEMMA_VOCABULARY,
    ) -> None:
        self.models = models
        self.faults = faults or Faults()
        self.calls = 0
        """Requests for completions that were answered, or begun to be."""
        self.running = 0
        """Requests for completions that are being answered."""
        self.generated_tokens = 0
        self._base = next(iter(models))
        self._encode = encode
        self._max_model_len = max_model_len
        self._vocabulary = vocabulary
        self._struck = count(1)
        self._routes = {
            ("GET", "/health"): ("health", self._health),
            ("GET", "/v1/models"): ("models", self._models),
            ("POST", "/v1/completions"): ("completions", self._completions),
            ("GET", "/metrics"): (None, self._metrics),
            ("GET", "/fake/faults"): (None, self._get_faults),
            ("POST", "/fake/faults"): (None, self._set_faults),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        kind, handle = self._routes.get((scope["method"], scope["path"]), (None, None))
        exchange = Exchange(receive, send, self._faults_of(kind))
        if handle is None:
            await exchange.answer(404, {"detail": "Not Found"})
            return
        body = await exchange.body()
        async with exchange.until_hung_up():
            if exchange.faults.hang:
                await asyncio.Event().wait()
            if exchange.faults.delay_seconds:
                await asyncio.sleep(exchange.faults.delay_seconds)
            try:
                if exchange.faults.status is not None:
                    status = exchange.faults.status
                    raise RefusalError(status, "on demand", "InternalServerError")
                await handle(exchange, body)
            except RefusalError as error:
                await exchange.answer(error.status, error.body)

    def _faults_of(self, kind: str | None) -> Faults:
        if kind not in self.faults.on or next(self._struck) % self.faults.every:
            return Faults(parrots=self.faults.parrots)
        return self.faults

    async def _health(self, exchange: Exchange, _: bytes) -> None:
        await exchange.answer(200, None)

    async def _models(self, exchange: Exchange, _: bytes) -> None:
        cards = [
            {
                "id": name,
                "object": "model",
                "owned_by": "fake",
                "max_model_len": self._max_model_len,
            }
            for name in self.models
        ]
        await exchange.answer(200, {"object": "list", "data": cards})

    async def _metrics(self, exchange: Exchange, _: bytes) -> None:
        """Two of vLLM's figures, under its names."""
        labels = f'{{engine="0",model_name="{self._base}"}}'
        await exchange.answer(
            200,
            f"vllm:num_requests_running{labels} {float(self.running)}\n"
            f"vllm:generation_tokens_total{labels} {float(self.generated_tokens)}\n",
        )

    async def _get_faults(self, exchange: Exchange, _: bytes) -> None:
        await exchange.answer(200, self.faults.model_dump(mode="json"))

    async def _set_faults(self, exchange: Exchange, body: bytes) -> None:
        try:
            self.faults = Faults.model_validate_json(body)
        except ValidationError as error:
            raise RefusalError(400, str(error)) from None
        await self._get_faults(exchange, b"")

    async def _completions(self, exchange: Exchange, body: bytes) -> None:
        ask = read(
            body,
            tuple(self.models),
            encode=self._encode,
            max_model_len=self._max_model_len,
            vocabulary=self._vocabulary,
        )
        self.calls += 1
        self.running += 1
        try:
            replies = self._replies(ask)
            if ask.request.stream:
                await self._stream(exchange, ask, replies)
            else:
                self.generated_tokens += sum(len(one.tokens) for one in replies)
                await exchange.answer(200, completion(self.calls, ask, replies))
        finally:
            self.running -= 1

    def _replies(self, ask: Ask) -> list[Reply]:
        name = ask.request.model
        model = self._base if name in self.faults.parrots else name
        return [
            reply(
                model,
                prompt,
                decoding,
                golden=self.models[model].get(prompt),
                encode=self._encode,
            )
            for prompt, decoding in zip(ask.prompts, ask.decodings, strict=True)
        ]

    async def _stream(self, exchange: Exchange, ask: Ask, replies: list[Reply]) -> None:
        head = {"id": f"cmpl-{self.calls}", "object": "text_completion", "model": ask.request.model}
        events = [
            {**head, "choices": [stream_choice(index, one, at)]}
            for index, one in enumerate(replies)
            for at in range(len(one.tokens))
        ]
        await exchange.start(200, b"text/event-stream")
        for number, event in enumerate(events):
            if exchange.faults.disconnect and number == math.ceil(len(events) / 2):
                return
            if exchange.faults.token_delay_seconds:
                await asyncio.sleep(exchange.faults.token_delay_seconds)
            self.generated_tokens += 1
            await exchange.write(b"data: " + to_json(event) + b"\n\n")
        if ask.request.stream_options.include_usage:
            last = {**head, "choices": [], "usage": usage(ask, replies)}
            await exchange.write(b"data: " + to_json(last) + b"\n\n")
        await exchange.end(b"data: [DONE]\n\n")
