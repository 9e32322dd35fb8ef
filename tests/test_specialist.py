"""A specialist is its card and its files: complete, untouched, and known by what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import specialist
from server.errors import ConfigError
from server.specialist import SpecialistCard, file_sha256, hash_files
from tests.tiny_fleet import GEMMA_PROMPT, STORY_SCHEMA, card, cards, labels, write_specialist

SHA = "0" * 64


def content_id(content: dict[str, Any]) -> str:
    return SpecialistCard.model_validate(content).content_id()


def load_faults(directory: Path) -> tuple[str, ...]:
    """Return what is wrong with the specialist in `directory`."""
    with pytest.raises(ConfigError) as caught:
        specialist.load(directory)
    return caught.value.faults


def card_faults(tmp_path: Path, content: object) -> tuple[str, ...]:
    """Return what is wrong with a card, each fault without the card's own path."""
    directory = tmp_path / "one"
    directory.mkdir(exist_ok=True)
    (directory / "specialist.json").write_text(json.dumps(content))
    faults = load_faults(directory)
    start = f"{directory / 'specialist.json'}: "
    assert all(fault.startswith(start) for fault in faults)
    return tuple(fault.removeprefix(start) for fault in faults)


@pytest.mark.parametrize("task", list(cards()))
def test_a_card_of_each_kind_is_read_and_identified(tmp_path: Path, task: str) -> None:
    loaded = specialist.load(write_specialist(tmp_path / task, cards()[task]))
    assert loaded.card.task == task
    name, _, digits = loaded.id.partition("@")
    assert name == task
    assert len(digits) == 8
    assert set(digits) <= set("0123456789abcdef")


CHANGES_ANSWERS: dict[str, Any] = {
    "prompt": GEMMA_PROMPT[:-1],
    "calibration": {"temperature": 1.6},
    "labels": labels("red", "green", "violet"),
    "files": {"adapter_model.safetensors": SHA},
    "max_prompt_tokens": 201,
    "base_model": {"name": "other"},
    "sampling": {"max_tokens": 7},
    "input_schema": {"type": "string"},
    "golden": [{"input": "other", "logprobs": {6: -0.2, 7: -2.3}}],
}
CHANGES_NO_ANSWER: dict[str, Any] = {
    "description": "Said otherwise.",
    "examples": ["another"],
    "quality": {"metrics": {"accuracy": 0.9}, "data": {"name": "held-out", "rows": 10}},
}


@pytest.mark.parametrize("key", list(CHANGES_ANSWERS))
def test_what_changes_an_answer_makes_another_specialist(key: str) -> None:
    colour = cards()["colour"]
    assert content_id({**colour, key: CHANGES_ANSWERS[key]}) != content_id(colour)


@pytest.mark.parametrize("key", list(CHANGES_NO_ANSWER))
def test_what_changes_no_answer_leaves_the_id_alone(key: str) -> None:
    colour = cards()["colour"]
    assert content_id({**colour, key: CHANGES_NO_ANSWER[key]}) == content_id(colour)


def test_every_key_of_the_card_is_known_to_change_answers_or_not() -> None:
    # A new key lands here, so that somebody decides whether it makes a new specialist.
    fixed = {"format", "task", "kind", "form", "schema", "none_token_id"}
    keys = {field.alias or name for name, field in SpecialistCard.model_fields.items()}
    assert keys == fixed | set(CHANGES_ANSWERS) | set(CHANGES_NO_ANSWER)


@given(st.permutations(list(cards()["colour"])))
def test_the_order_of_keys_and_the_defaults_written_out_leave_the_id_alone(
    keys: list[str],
) -> None:
    colour = cards()["colour"]
    assert content_id({key: colour[key] for key in keys}) == content_id(colour)
    whole = SpecialistCard.model_validate(colour).model_dump(mode="json", by_alias=True)
    assert content_id(whole) == content_id(colour)


@given(st.binary(max_size=64), st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_a_file_is_its_bytes(tmp_path: Path, listed: bytes, found: bytes) -> None:
    directory = tmp_path / "one"
    directory.mkdir(exist_ok=True)
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(listed)
    files = hash_files(directory, [weights.name])
    write_specialist(directory, {**cards()["colour"], "files": files})
    weights.write_bytes(found)
    if found == listed:
        assert specialist.load(directory).card.files == {weights.name: file_sha256(weights)}
    else:
        (fault,) = load_faults(directory)
        assert fault.startswith(f"{weights}: not the file that specialist.json lists")
        assert specialist.load(directory, verify=False).card.files == files


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    directory = write_specialist(
        tmp_path / "one", {**cards()["colour"], "files": {"a.safetensors": SHA}}
    )
    (fault,) = load_faults(directory)
    assert fault == f"{directory / 'a.safetensors'}: not there, though specialist.json lists it"


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", ".", "", "link"])
def test_a_file_outside_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("x")
    directory = write_specialist(tmp_path / "one", {**cards()["colour"], "files": {name: SHA}})
    (directory / "link").symlink_to(tmp_path / "outside")
    (fault,) = load_faults(directory)
    assert "lies outside the specialist's directory" in fault


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "folder"])
def test_a_name_that_is_no_readable_file_is_a_fault_in_words(tmp_path: Path, name: str) -> None:
    directory = write_specialist(tmp_path / "one", {**cards()["colour"], "files": {name: SHA}})
    (directory / "folder").mkdir()
    (fault,) = load_faults(directory)
    assert str(directory) in fault


def test_a_directory_without_a_card_says_so(tmp_path: Path) -> None:
    (fault,) = load_faults(tmp_path)
    assert fault.startswith(f"{tmp_path / 'specialist.json'}: not there")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"a": "\\ud800"}', "\ufeff"])
def test_what_is_no_card_at_all_is_one_fault_naming_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "specialist.json").write_text(text)
    (fault,) = load_faults(tmp_path)
    assert fault.startswith(f"{tmp_path / 'specialist.json'}: ")
    assert "\n" not in fault


def test_bytes_that_are_no_text_are_one_fault(tmp_path: Path) -> None:
    (tmp_path / "specialist.json").write_bytes(b'{"task": "\xff"}')
    assert len(load_faults(tmp_path)) == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"lables": []}, "lables: "),
    "task name": ({"task": "Colour!"}, "task: "),
    "kind": ({"kind": "guess"}, "kind: "),
    "no labels": ({"labels": []}, "needs `labels`"),
    "one label": ({"labels": labels("red")}, "needs `labels`"),
    "label twice": ({"labels": labels("red", "blue", "red")}, "'red' is not"),
    "label said twice": (
        {"labels": [{"label": "a", "token_id": 6, "words": "a"}, *labels("x", "y")]},
        "labels.0: give either `token_id` or `words`",
    ),
    "label not said": ({"labels": [{"label": "a"}]}, "labels.0: give either"),
    "token shared": (
        {"labels": [{"label": "a", "token_id": 6}, {"label": "b", "token_id": 6}]},
        "share one `token_id`",
    ),
    "both ways": (
        {"labels": [{"label": "a", "token_id": 6}, {"label": "b", "words": "b"}]},
        "not some by each",
    ),
    "words begin words": (
        {"labels": [{"label": "a", "words": "new"}, {"label": "b", "words": "new york"}]},
        "begin (or equal) another label's words",
    ),
    "schema of another kind": ({"schema": {}}, "`schema` belongs to `extract`"),
    "no schema at all": ({"input_schema": {"type": 3}}, "`input_schema` is no JSON Schema"),
    "no regex": ({"input_schema": {"pattern": "("}}, "`input_schema` is no JSON Schema"),
    "no input": ({"prompt": [{"text": "hello"}]}, "the caller's text goes nowhere"),
    "empty prompt": ({"prompt": []}, "prompt: "),
    "piece of two sorts": (
        {"prompt": [{"input": "text"}, {"text": "a", "input": "b"}]},
        'prompt.1: write {"control": ...}',
    ),
    "no golden": ({"golden": []}, "needs `golden` probes"),
    "golden of one": ({"golden": [{"input": "a", "logprobs": {6: -1}}]}, "golden.0.logprobs: "),
    "cold": ({"calibration": {"temperature": 0}}, "calibration.temperature: "),
    "infinitely hot": (
        {"calibration": {"temperature": float("inf")}},
        "calibration.temperature: ",
    ),
    "nan": (
        {"golden": [{"input": "a", "logprobs": {6: float("nan"), 7: -1.0}}]},
        "golden.0.logprobs.6: ",
    ),
    "revision": ({"base_model": {"name": "a", "revision": "main"}}, "base_model.revision: "),
    "hash": ({"files": {"a": "beef"}}, "files.a: "),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_wrong_card_names_the_key_on_one_line(tmp_path: Path, wrong: str) -> None:
    change, expected = WRONG[wrong]
    faults = card_faults(tmp_path, {**cards()["colour"], **change})
    assert any(expected in fault for fault in faults)
    assert not any("\n" in fault for fault in faults)
    if "empty" not in wrong and "sorts" not in wrong:
        assert len(faults) == 1


@pytest.mark.parametrize(
    ("task", "change", "expected"),
    [
        ("invoice", {"schema": None}, "`schema` belongs to `extract`"),
        ("story", {"labels": labels("a", "b")}, "mean nothing to a specialist of kind 'generate'"),
        ("topics", {"none_token_id": None}, "has `none_token_id`"),
        ("topics", {"none_token_id": 6}, "share one `token_id`"),
        ("topics", {"labels": []}, "needs `labels`"),
    ],
)
def test_each_kind_has_what_it_needs_and_no_more(
    tmp_path: Path, task: str, change: dict[str, Any], expected: str
) -> None:
    (fault,) = card_faults(tmp_path, {**cards()[task], **change})
    assert expected in fault


def test_a_full_model_needs_no_golden_probe() -> None:
    SpecialistCard.model_validate({**cards()["colour"], "form": "full", "golden": []})


def test_several_faults_are_all_said_at_once(tmp_path: Path) -> None:
    faults = card_faults(tmp_path, {**cards()["colour"], "lables": 1, "max_prompt_tokens": 0})
    assert len(faults) == 2


def _deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize("depth", [1, 50, 90, 180])
def test_a_schema_however_deep_is_read_or_refused_in_words(tmp_path: Path, depth: int) -> None:
    directory = write_specialist(
        tmp_path / "one", {**cards()["colour"], "input_schema": _deep(depth)}
    )
    try:
        found, faults = specialist.load(directory).card.input_schema, ""
    except ConfigError as error:
        found, faults = {}, str(error)
    deep = "`input_schema` is nested too deeply" in faults or "recursion limit" in faults
    assert found == _deep(depth) or (deep and depth > 50)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    task=st.sampled_from(list(cards())),
    key=st.sampled_from(
        [field.alias or name for name, field in SpecialistCard.model_fields.items()]
    ),
    value=json_values,
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_card_it_is_read_or_refused_in_words(
    tmp_path: Path, task: str, key: str, value: object
) -> None:
    directory = write_specialist(tmp_path / "one", {**cards()[task], key: value})
    try:
        faults: tuple[str, ...] = (str(specialist.load(directory).path),)
    except ConfigError as error:
        faults = error.faults
    assert faults
    assert all(fault.startswith(str(directory)) for fault in faults)


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        ([{"input": "text"}], ()),
        ([{"input": "hero"}, {"text": "!"}, {"input": "place"}], ("hero", "place")),
        ([{"input": "hero"}], ("hero",)),
    ],
)
def test_the_fields_of_an_input_are_the_templates(
    prompt: list[dict[str, str]], fields: tuple[str, ...]
) -> None:
    content = card("story", "generate", prompt=prompt, input_schema=STORY_SCHEMA)
    assert SpecialistCard.model_validate(content).fields == fields


def test_a_card_cannot_be_changed_once_read() -> None:
    read = SpecialistCard.model_validate(cards()["colour"])
    change: Callable[[str, object], None] = read.__setattr__
    with pytest.raises(ValueError, match="frozen"):
        change("task", "other")
