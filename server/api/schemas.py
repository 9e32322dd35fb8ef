"""What a caller sends, parsed and checked; and what the OpenAPI document says of each task."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from server.errors import InvalidRequest, MalformedRequest
from server.specialist import SpecialistCard
from server.tasks.registry import Task, TaskRegistry
from server.types import Input

Subject = Annotated[str, Field(min_length=1, max_length=256)]


class TaskRequest(BaseModel):
    """The body of `POST /v1/tasks/{task}`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    input: JsonValue = None
    inputs: list[JsonValue] | None = Field(default=None, min_length=1)
    subject: Subject | None = None
    deadline_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    stream: bool = False
    variant: Annotated[str, Field(max_length=63)] | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if ("input" in self.model_fields_set) == (self.inputs is not None):
            raise ValueError('write either "input": ... or "inputs": [...]')
        if self.stream and self.inputs is not None:
            raise ValueError('"stream" is for one "input", not for a list')
        return self


def parse(body: bytes, max_inputs: int) -> TaskRequest:
    """Return the request in a body.

    Raises:
        MalformedRequest: the body is no JSON.
        InvalidRequest: it is JSON, but not the contract's.
    """
    try:
        request = TaskRequest.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        if fault["type"] == "json_invalid":
            raise MalformedRequest(f"the body is no JSON: {fault['ctx']['error']}") from None
        raise _invalid(fault["type"], fault["loc"], fault["msg"]) from None
    if request.inputs is not None and len(request.inputs) > max_inputs:
        raise InvalidRequest(
            f"inputs: {len(request.inputs)} are too many, at most {max_inputs} go into one request",
            param="inputs",
        )
    return request


def as_input(value: JsonValue) -> Input:
    """Return a JSON value as an input.

    Raises:
        InvalidRequest: it is neither a string nor an object.
    """
    if isinstance(value, str | dict):
        return value
    kind = {list: "a list", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
    raise InvalidRequest(
        f"input: must be a string, or an object with the task's fields; it is {kind}", param="input"
    )


def _invalid(kind: str, loc: tuple[int | str, ...], message: str) -> InvalidRequest:
    # Positions inside a caller's list or object, and pydantic's branch names, are no parameters.
    param = str(loc[0])[:100] if loc else None
    text = message.removeprefix("Value error, ")
    if kind == "model_type":
        text = 'the body must be an object such as {"input": "..."}'
    elif kind == "extra_forbidden":
        known = ", ".join(TaskRequest.model_fields)
        text = f"unknown field; a request may have: {known}"
    where = f"{param}: " if param else ""
    return InvalidRequest(f"{where}{text[:1].lower()}{text[1:]}", param=param)


def input_schema(card: SpecialistCard) -> dict[str, Any]:
    """Return the JSON Schema of one input, with the card's examples."""
    return {**card.input_schema, **({"examples": list(card.examples)} if card.examples else {})}


def output_schema(card: SpecialistCard) -> dict[str, Any]:
    """Return the JSON Schema of one output."""
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    names = [label.label for label in card.labels]
    scores = _object(dict.fromkeys(names, probability))
    match card.kind:
        case "classify":
            label = {"type": "string", "enum": names}
            return _object({"label": label, "confidence": probability, "scores": scores})
        case "tag":
            labels = {"type": "array", "items": {"type": "string", "enum": names}}
            return _object({"labels": labels, "scores": scores})
        case "extract":
            return _object({"data": card.schema_ or {}})
        case "generate":
            reason = {"type": "string", "enum": ["stop", "length"]}
            return _object({"text": {"type": "string"}, "finish_reason": reason})


def answer_schema(card: SpecialistCard) -> dict[str, Any]:
    """Return the JSON Schema of an answer, its output included."""
    number, text = {"type": "number", "minimum": 0}, {"type": "string"}
    usage = _ref("Usage")
    return _object(
        {
            "id": text,
            "task": {"type": "string", "const": card.task},
            "variant": text,
            "specialist": text,
            "output": output_schema(card),
            "abstained": {"type": "boolean"},
            "escalated_to": {"type": ["string", "null"]},
            "cached": {"type": "boolean"},
            "usage": usage,
            "timing_ms": _object({"total": number, "queue": number, "worker": number}),
        }
    )


def add_tasks(document: dict[str, Any], tasks: TaskRegistry) -> dict[str, Any]:
    """Add one path per task, with its own schemas and labels, to an OpenAPI document."""
    whole = {"type": "integer", "minimum": 0}
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Usage"] = _object(
        {
            "prompt_tokens": whole,
            "completion_tokens": whole,
            "cost_dollars": {"type": "number", "minimum": 0},
        }
    )
    detail = {"code": {"type": "string"}, "message": {"type": "string"}, "type": {"type": "string"}}
    nullable = {"type": ["string", "null"]}
    schemas["Error"] = _object(
        {"error": _object({**detail, "param": nullable, "request_id": {"type": "string"}})}
    )
    for task in tasks:
        document["paths"][f"/v1/tasks/{task.name}"] = {"post": _operation(task)}
    return document


def _operation(task: Task) -> dict[str, Any]:
    card = task.card
    one = answer_schema(card)
    answers = {"type": "array", "items": {"anyOf": [one, _ref("Error")]}}
    listed = _object({"task": {"type": "string"}, "results": answers, "usage": _ref("Usage")})
    content: dict[str, Any] = {"application/json": {"schema": {"anyOf": [one, listed]}}}
    if card.kind == "generate":
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "tags": ["tasks"],
        "operationId": f"ask-{task.name}",
        "summary": task.description,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _request_schema(task)}},
        },
        "responses": {
            "200": {"description": "The answer, or one a listed input.", "content": content},
            "default": {
                "description": "An error: `code` says which.",
                "content": {"application/json": {"schema": _ref("Error")}},
            },
        },
    }


def _request_schema(task: Task) -> dict[str, Any]:
    one = input_schema(task.card)
    variants = [variant.name for variant in task.variants]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "input": one,
            "inputs": {"type": "array", "minItems": 1, "items": one},
            "subject": {"type": "string", "minLength": 1, "maxLength": 256},
            "deadline_ms": {"type": "number", "exclusiveMinimum": 0},
            "variant": {"type": "string", "enum": variants},
            "stream": {"type": "boolean", "default": False},
        },
        "oneOf": [{"required": ["input"]}, {"required": ["inputs"]}],
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
