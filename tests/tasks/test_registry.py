"""Tasks made ready: found by name, their prompts checked, their tokenizers read once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import config, fleet
from server.errors import ConfigError, InputTooLong, InvalidRequest, UnknownTask, UnknownVariant
from server.fleet import Fleet
from server.tasks import registry
from server.tasks.registry import ServedVariant, TaskRegistry
from server.tasks.tokenizer import TaskTokenizer, TokenizerShelf
from tests.tiny_fleet import STORY_PROMPT, cards, write_fleet, write_specialist

WHOLE = {"hero": "a hare", "place": "a wood"}


def no_hub(model: str, revision: str | None) -> Path:
    """Stand in for a hub that does not answer."""
    raise ConfigError([f"no hub for {model}"])


def read_fleet(
    root: Path, change: Callable[[dict[str, dict[str, Any]]], None], **more: Any
) -> Fleet:
    """Write a fleet under `root`, its cards changed, and resolve it."""
    path = write_fleet(root, "", **more)
    changed = cards()
    change(changed)
    for task, content in changed.items():
        write_specialist(root / "specialists" / task, content)
    return fleet.resolve(config.load(path, {}))


def unchanged(_: dict[str, dict[str, Any]]) -> None:
    """Leave the cards as they are."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskRegistry:
    """Return the tiny fleet's tasks; colour has a second variant."""
    root = tmp_path_factory.mktemp("fleet")
    variants = "[tasks.colour.variants.canary]\nspecialist = 'specialists/colour'\nweight = 5\n"
    return registry.build(read_fleet(root, unchanged, variants=variants), no_hub)


@pytest.fixture(scope="module")
def colour(tasks: TaskRegistry) -> ServedVariant:
    """Return the stable variant of a task whose input is one text."""
    return tasks.resolve("colour").stable


def test_every_task_is_found_by_its_name(tasks: TaskRegistry) -> None:
    assert [task.name for task in tasks] == list(cards())
    for name in cards():
        assert tasks.resolve(name).name == name
        assert tasks.resolve(name).card.task == name


@pytest.mark.parametrize(("wrong", "meant"), [("color", "colour"), ("storry", "story")])
def test_an_unknown_task_is_answered_with_near_misses(
    tasks: TaskRegistry, wrong: str, meant: str
) -> None:
    with pytest.raises(UnknownTask, match=f"did you mean '{meant}'") as caught:
        tasks.resolve(wrong)
    assert caught.value.param == "task"


@given(name=st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_name_is_an_unknown_task(tasks: TaskRegistry, name: str) -> None:
    if name not in cards():
        with pytest.raises(UnknownTask):
            tasks.resolve(name)


def test_a_name_of_a_megabyte_is_not_repeated_in_full(tasks: TaskRegistry) -> None:
    with pytest.raises(UnknownTask) as caught:
        tasks.resolve("x" * 1_000_000)
    assert len(caught.value.message) <= 300


def test_a_variant_is_found_by_its_name_and_an_unknown_one_lists_them(tasks: TaskRegistry) -> None:
    task = tasks.resolve("colour")
    assert task.variant("canary").weight == 5
    assert task.variant("stable") is task.stable
    with pytest.raises(UnknownVariant, match="there are: stable, canary"):
        task.variant("canry")


def test_a_task_is_described_by_fleet_toml_or_else_by_its_card(tmp_path: Path) -> None:
    path = write_fleet(tmp_path, "")
    text = path.read_text().replace("[tasks.topics]\n", "[tasks.topics]\ndescription = 'Ours.'\n")
    path.write_text(text)
    tasks = registry.build(fleet.resolve(config.load(path, {})), no_hub)
    assert tasks.resolve("topics").description == "Ours."
    assert tasks.resolve("colour").description == "The colour task."


async def test_a_prompt_is_the_one_that_the_template_makes(colour: ServedVariant) -> None:
    assert await colour.prompt("the label") == colour.encode("the label")


@pytest.mark.parametrize("value", ["", {"text": "red"}])
async def test_an_input_that_breaks_the_schema_is_refused(
    colour: ServedVariant, value: str | dict[str, str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await colour.prompt(value)
    assert caught.value.param == "input"


async def test_a_field_that_breaks_the_schema_is_named(tasks: TaskRegistry) -> None:
    with pytest.raises(InvalidRequest, match=r"^input\.hero: ") as caught:
        await tasks.resolve("story").stable.prompt({**WHOLE, "hero": "a pike"})
    assert caught.value.param == "input.hero"


async def test_an_input_may_fill_the_prompt_to_the_last_token(colour: ServedVariant) -> None:
    limit = colour.specialist.card.max_prompt_tokens
    room = limit - len(colour.encode("").token_ids)
    assert len((await colour.prompt("Q" * room)).token_ids) == limit
    with pytest.raises(InputTooLong, match=f"{limit + 1} tokens"):
        await colour.prompt("Q" * (room + 1))


async def test_a_text_far_too_long_is_refused_without_being_encoded(
    colour: ServedVariant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colour, "_template", None)
    with pytest.raises(InputTooLong, match="at least"):
        await colour.prompt("Q" * 1_000_000)


@given(text=st.text(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_token_stands_for_more_characters_than_the_longest_piece(
    colour: ServedVariant, text: str
) -> None:
    # What is refused unencoded rests on this.
    tokenizer = TaskTokenizer(colour._tokenizer.tokenizer)
    bare = len(colour.encode("").token_ids)
    assert len(colour.encode(text).token_ids) - bare >= len(text) // tokenizer.longest_piece


async def test_a_long_text_that_fits_is_encoded_off_the_loop_to_the_same_prompt(
    tmp_path: Path,
) -> None:
    tasks = registry.build(
        read_fleet(tmp_path, lambda all_: all_["colour"].update(max_prompt_tokens=100_000)), no_hub
    )
    stable, text = tasks.resolve("colour").stable, "the label " * 1000
    assert await stable.prompt(text) == stable.encode(text)


async def test_a_field_that_the_template_leaves_out_takes_no_room(tmp_path: Path) -> None:
    def hero_alone(all_: dict[str, dict[str, Any]]) -> None:
        prompt = [piece for piece in STORY_PROMPT if piece != {"input": "place"}]
        all_["story"].update(prompt=prompt, input_schema={"type": "object"})

    story = registry.build(read_fleet(tmp_path, hero_alone), no_hub).resolve("story").stable
    value = {"hero": "a hare", "notes": "Q" * 100_000}
    assert await story.prompt(value) == story.encode({"hero": "a hare"})


def test_variants_of_one_base_share_one_tokenizer(tmp_path: Path) -> None:
    resolved = read_fleet(tmp_path, unchanged)
    shelf = TokenizerShelf(resolved, no_hub)
    read = {id(shelf.of(arm)) for arms in resolved.variants.values() for arm in arms}
    assert len(read) == 1


def test_a_tokenizer_beside_the_card_is_preferred_to_its_base(tmp_path: Path) -> None:
    resolved = read_fleet(tmp_path, unchanged)
    base = tmp_path / "specialists" / "base" / "tokenizer.json"
    own = tmp_path / "specialists" / "colour" / "tokenizer.json"
    own.write_bytes(base.read_bytes())
    found = {task: resolved.tokenizer_file(arms[0]) for task, arms in resolved.variants.items()}
    assert found.pop("colour") == own
    assert set(found.values()) == {base}


def test_a_tokenizer_that_only_the_hub_has_is_asked_for_once_a_worker(tmp_path: Path) -> None:
    resolved = read_fleet(tmp_path, unchanged)
    base = tmp_path / "specialists" / "base"
    kept = (base / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    asked = []

    def hub(model: str, revision: str | None) -> Path:
        asked.append((model, revision))
        return kept

    assert len(list(registry.build(resolved, hub))) == len(cards())
    assert asked == [(str(base), None)]


def test_a_tokenizer_that_nobody_has_is_one_fault_naming_the_worker(tmp_path: Path) -> None:
    resolved = read_fleet(tmp_path, unchanged)
    (tmp_path / "specialists" / "base" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError) as caught:
        registry.build(resolved, no_hub)
    (fault,) = caught.value.faults
    assert fault.startswith("workers.base.model: no hub for ")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    resolved = read_fleet(tmp_path, unchanged)
    file = tmp_path / "specialists" / "base" / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(ConfigError) as caught:
        registry.build(resolved, no_hub)
    (fault,) = caught.value.faults
    assert fault.startswith(f"{file}: no tokenizer: ")


def test_a_label_beyond_the_tokenizer_is_a_fault_of_the_card(tmp_path: Path) -> None:
    def beyond(all_: dict[str, dict[str, Any]]) -> None:
        all_["topics"]["none_token_id"] = 99_999

    with pytest.raises(ConfigError, match="token 99999 is beyond the tokenizer's") as caught:
        registry.build(read_fleet(tmp_path, beyond), no_hub)
    assert str(tmp_path / "specialists" / "topics") in caught.value.faults[0]


def test_a_control_token_that_the_tokenizer_lacks_names_the_card(tmp_path: Path) -> None:
    def unknown(all_: dict[str, dict[str, Any]]) -> None:
        all_["topics"]["prompt"] = [{"control": "<start>"}, {"input": "text"}]

    with pytest.raises(ConfigError, match="no control token '<start>'") as caught:
        registry.build(read_fleet(tmp_path, unknown), no_hub)
    assert "topics" in caught.value.faults[0]


@pytest.mark.parametrize("task", list(cards()))
def test_every_kind_has_a_reader(tasks: TaskRegistry, task: str) -> None:
    assert tasks.resolve(task).stable.reader.decoding is not None
    assert {one.specialist.card.task for one in tasks.served()} == set(cards())
