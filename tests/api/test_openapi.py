"""The OpenAPI document, held against what is sent and returned."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.gatewayed import INPUTS, House
from tests.tiny_fleet import COLOURS, INVOICE_SCHEMA, STORY_SCHEMA

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = {"get", "post", "put", "delete", "patch", "head", "options", "trace"}


async def _document(house: House) -> dict[str, Any]:
    document: dict[str, Any] = (await house.http.get("/openapi.json")).json()
    return document


def _validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator for a schema that refers to the document's components."""
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator({**schema, "components": document["components"]})


def _request(document: dict[str, Any], task: str) -> Draft202012Validator:
    return _validator(document, _request_schema(document, task))


def _request_schema(document: dict[str, Any], task: str) -> dict[str, Any]:
    return _schema(document["paths"][f"/v1/tasks/{task}"]["post"]["requestBody"])


def _response(document: dict[str, Any], task: str, status: str) -> Draft202012Validator:
    return _validator(document, _response_schema(document, task, status))


def _response_schema(document: dict[str, Any], task: str, status: str) -> dict[str, Any]:
    return _schema(document["paths"][f"/v1/tasks/{task}"]["post"]["responses"][status])


def _schema(body: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = body["content"]["application/json"]["schema"]
    return schema


def _references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_references, value))
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(_references, value.values()))
    return set()


async def test_it_has_the_shape_of_openapi_3_1(house: House) -> None:
    document = await _document(house)
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"]
    assert document["info"]["version"]
    ids = []
    for path, item in document["paths"].items():
        assert path.startswith("/")
        assert item.keys() <= METHODS
        for operation in item.values():
            ids.append(operation["operationId"])
            assert operation["responses"]
            for answer in operation["responses"].values():
                assert answer["description"]
            placeholders = {part[1:-1] for part in path.split("/") if part.startswith("{")}
            parameters = operation.get("parameters", [])
            assert {one["name"] for one in parameters if one["in"] == "path"} == placeholders
    assert len(set(ids)) == len(ids)
    for reference in _references(document):
        value: Any = document
        for part in reference.removeprefix("#/").split("/"):
            value = value[part]
        assert value
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_there_is_one_path_for_each_task(house: House) -> None:
    paths = (await _document(house))["paths"]
    posts = {path for path, item in paths.items() if "post" in item}
    assert {f"/v1/tasks/{task}" for task in INPUTS} == posts
    for task in INPUTS:
        assert paths[f"/v1/tasks/{task}"]["post"]["summary"] == f"The {task} task."
    for path in ("/v1/tasks", "/v1/fleet", "/health/live", "/health/ready", "/health/tasks"):
        assert "get" in paths[path]


async def test_labels_and_schemas_are_the_tasks_own(house: House) -> None:
    document = await _document(house)

    def output(task: str) -> dict[str, Any]:
        schema = _response_schema(document, task, "200")["anyOf"][0]
        properties: dict[str, Any] = schema["properties"]["output"]["properties"]
        return properties

    assert output("colour")["label"]["enum"] == list(COLOURS)
    assert output("colour")["scores"]["required"] == list(COLOURS)
    assert output("topics")["labels"]["items"]["enum"] == ["art", "sport"]
    assert output("invoice")["data"] == INVOICE_SCHEMA
    assert output("story")["finish_reason"]["enum"] == ["stop", "length"]
    story = _request_schema(document, "story")["properties"]["input"]
    assert story["properties"] == STORY_SCHEMA["properties"]
    assert story["examples"] == [{"hero": "a hare", "place": "a wood"}]
    assert _request_schema(document, "story")["properties"]["variant"]["enum"] == ["stable"]


@pytest.mark.parametrize("task", INPUTS)
async def test_what_is_returned_is_what_is_documented(house: House, task: str) -> None:
    document = await _document(house)
    answered = _response(document, task, "200")
    failed = _response(document, task, "default")
    one = INPUTS[task]
    for body in (
        {"input": one},
        {"input": one, "subject": "ann", "deadline_ms": 5000, "variant": "stable"},
        {"inputs": [one, one]},
    ):
        _request(document, task).validate(body)
        response = await house.http.post(f"/v1/tasks/{task}", json=body)
        assert response.status_code == 200
        answered.validate(response.json())
    mixed = {"inputs": [one, 3, one]}
    answered.validate((await house.http.post(f"/v1/tasks/{task}", json=mixed)).json())
    wrongs: tuple[dict[str, Any], ...] = (
        {}, {"input": 3}, {"input": one, "inputs": [one]}, {"inputs": []}, {"input": one, "a": 1},
        {"input": one, "deadline_ms": 0}, {"input": one, "subject": ""}, {"input": ""},
        {"input": one, "variant": "canary"},
    )  # fmt: skip
    for wrong in wrongs:
        assert not _request(document, task).is_valid(wrong), wrong
        response = await house.http.post(f"/v1/tasks/{task}", json=wrong)
        assert response.status_code in (404, 422), wrong
        failed.validate(response.json())


async def test_the_documented_answer_is_not_just_anything(house: House) -> None:
    document = await _document(house)
    answer = (await house.ask("colour")).json()
    validator = _response(document, "colour", "200")
    validator.validate(answer)
    for wrong in (
        {**answer, "more": 1},
        {**answer, "task": "story"},
        {key: answer[key] for key in answer.keys() - {"usage"}},
        {**answer, "output": {**answer["output"], "label": "mauve"}},
    ):
        with pytest.raises(ValidationError):
            validator.validate(wrong)


@pytest.mark.parametrize("task", INPUTS)
async def test_a_tasks_examples_can_be_asked(house: House, task: str) -> None:
    described = (await house.http.get(f"/v1/tasks/{task}")).json()
    (example,) = described["input_schema"]["examples"]
    assert (await house.ask(task, example)).status_code == 200


async def test_a_task_is_described(house: House) -> None:
    listed = (await house.http.get("/v1/tasks")).json()["tasks"]
    assert [one["name"] for one in listed] == list(INPUTS)
    kinds = {one["name"]: one["kind"] for one in listed}
    assert kinds == {
        "colour": "classify", "spoken": "classify", "topics": "tag", "invoice": "extract",
        "story": "generate",
    }  # fmt: skip
    for described in listed:
        alone = (await house.http.get(f"/v1/tasks/{described['name']}")).json()
        assert alone == described
        (variant,) = house.fleet.variants[described["name"]]
        assert described["specialist"] == variant.specialist.id
        assert described["quality"] is None
        output = (await house.ask(described["name"])).json()["output"]
        Draft202012Validator(described["output_schema"]).validate(output)
        Draft202012Validator(described["input_schema"]).validate(INPUTS[described["name"]])
    colour = listed[0]
    assert colour["labels"] == list(COLOURS)
    assert colour["description"] == "The colour task."
    assert colour["calibration"]["temperature"] == 1.5


async def test_it_is_the_same_every_time(house: House) -> None:
    first, second = [await _document(house) for _ in range(2)]
    assert json.dumps(first) == json.dumps(second)
