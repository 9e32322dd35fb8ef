"""Responses: JSON from plain values, answers and errors as the contract shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from server.api.errors import body_of, headers_of, status_of
from server.errors import RequestError
from server.types import Answer, Classified, Extracted, Generated, Output, Tagged, Usage


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `value` as JSON."""
    return Response(to_json(value), status, headers, media_type="application/json")


def error_response(error: RequestError, request_id: str) -> Response:
    """Return an error in the contract's envelope, with its status and Retry-After."""
    return json_response(body_of(error, request_id), status_of(error), headers_of(error))


def answer_body(answer: Answer) -> dict[str, Any]:
    """Return an answer as the contract shows it."""
    timing = answer.timing
    return {
        "id": answer.id,
        "task": answer.task,
        "variant": answer.variant,
        "specialist": answer.specialist,
        "output": output_body(answer.output),
        "abstained": answer.abstained,
        "escalated_to": answer.escalated_to,
        "cached": answer.cached,
        "usage": usage_body(answer.usage),
        "timing_ms": {
            "total": round(timing.total, 3),
            "queue": round(timing.queue, 3),
            "worker": round(timing.worker, 3),
        },
    }


def output_body(output: Output) -> dict[str, Any]:
    """Return an output by its kind."""
    match output:
        case Classified(label, confidence, scores):
            return {"label": label, "confidence": confidence, "scores": scores}
        case Tagged(labels, scores):
            return {"labels": labels, "scores": scores}
        case Extracted(data):
            return {"data": data}
        case Generated(text, finish_reason):
            return {"text": text, "finish_reason": finish_reason}


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return tokens and dollars."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cost_dollars": usage.cost_dollars,
    }


def timing_header(answer: Answer) -> str:
    """Return the answer's stages for `Server-Timing`; the middleware adds the total."""
    return f"queue;dur={answer.timing.queue:.2f}, worker;dur={answer.timing.worker:.2f}"
