"""A specialist made from nothing is good, whole, and the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.specialist import load
from server.tuning.base import Lesson, make_base
from server.tuning.golden import IndistinctError, golden_probes, total_variation
from server.tuning.model import load_model, parameter_count
from server.tuning.progress import silent
from server.tuning.publish import tune_adapter, tune_full
from server.tuning.task import Rows
from server.types import Example
from tests.tuning import toys


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny base that has rehearsed the sorting task."""
    directory = tmp_path_factory.mktemp("made") / "base"
    directory.mkdir()
    rows = toys.sorting_rows()
    lessons = [Lesson(toys.sorting_task(), rows.train)]
    documents = [str(example.input) for example in rows.train]
    make_base(directory, lessons, documents, toys.BASE, seed=1, progress=silent)
    return directory


def test_a_full_specialist_learns_separable_rows_and_its_card_holds(tmp_path: Path) -> None:
    made = tune_full(
        toys.sorting_task(), toys.sorting_rows(), toys.SHORT, tmp_path, shape=toys.TINY
    )
    read = load(tmp_path)
    assert read.id == made.content_id()
    assert read.card.form == "full"
    assert read.card.quality is not None
    assert read.card.quality.metrics["accuracy"] >= 0.95
    assert read.card.quality.baseline["accuracy"] >= 0.95
    assert read.card.calibration.method == "temperature"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= read.card.files.keys()
    assert parameter_count(tmp_path) < 200_000


def test_generation_stops_at_both_ends(base: Path) -> None:
    config = json.loads((base / "generation_config.json").read_text())
    tokens = json.loads((base / "tokenizer.json").read_text())["added_tokens"]
    ends = {token["content"]: token["id"] for token in tokens}
    assert config["eos_token_id"] == [ends["<eos>"], ends["<end_of_turn>"]]


def test_the_same_seed_makes_the_same_specialist(tmp_path: Path) -> None:
    one, other, third = (
        tune_full(
            toys.sorting_task(), toys.sorting_rows(), toys.SHORT, tmp_path / name,
            shape=toys.TINY, seed=seed,
        ).content_id()
        for name, seed in (("one", 3), ("other", 3), ("third", 4))
    )  # fmt: skip
    assert one == other != third


def test_a_tag_specialist_finds_each_label_by_itself(tmp_path: Path) -> None:
    rows = toys.finding_rows()
    card = tune_full(toys.finding_task(), rows, toys.SHORT, tmp_path, shape=toys.TINY)
    assert card.none_token_id is not None
    assert card.quality is not None
    assert card.quality.metrics["micro_f1"] >= 0.9


def test_labels_can_be_said_in_words(tmp_path: Path) -> None:
    task = toys.sorting_task(words=True)
    card = tune_full(task, toys.sorting_rows(), toys.SHORT, tmp_path, shape=toys.TINY)
    assert [label.words for label in card.labels] == list(toys.WORDS)
    assert card.quality is not None
    assert card.quality.metrics["accuracy"] >= 0.9


def test_an_adapter_learns_and_its_probes_tell_it_from_its_base(base: Path, tmp_path: Path) -> None:
    rows = toys.sorting_rows()
    made = tune_adapter(base, toys.sorting_task(), rows, toys.ADAPTER, tmp_path, seed=1)
    card = load(tmp_path).card
    assert card == made
    assert card.quality is not None
    assert card.quality.metrics["accuracy"] >= 0.95
    assert set(card.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert len(card.golden) >= 3
    assert {len(golden.logprobs) for golden in card.golden} <= {3, 4}


def test_an_adapter_says_nothing_of_the_machine_it_was_made_on(base: Path, tmp_path: Path) -> None:
    rows = toys.sorting_rows()
    tune_adapter(base, toys.sorting_task(), rows, toys.ADAPTER, tmp_path, seed=1)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(base.parent) not in (tmp_path / "adapter_config.json").read_text()


def test_a_specialist_like_its_base_gets_no_probes(base: Path) -> None:
    from server.tuning.answering import answering
    from server.tuning.dataset import Row
    from server.tuning.tokenizer import load_tokenizer

    how = answering(toys.sorting_task(), load_tokenizer(base))
    inputs = ["the cat", "my red", "six"]
    prompts = [Row(how.prompt(value), 0) for value in inputs]
    model = load_model(base)
    with pytest.raises(IndistinctError, match="0 of 3"):
        golden_probes(model, load_model(base), inputs, prompts, how.probe_ids)


def test_total_variation_is_zero_of_equals_and_one_of_strangers() -> None:
    import torch

    one, other = torch.tensor([0.0, -100.0]), torch.tensor([-100.0, 0.0])
    assert total_variation(one, one) == 0.0
    assert total_variation(one, other) == pytest.approx(1.0)


def test_rows_can_be_few(tmp_path: Path) -> None:
    cat, six = Example("the cat", "animal"), Example("a six", "number")
    rows = Rows("few", [cat, six], [six], [cat])
    card = tune_full(toys.sorting_task(words=True), rows, toys.SHORT, tmp_path, shape=toys.TINY)
    assert card.quality is not None
    assert card.quality.data.rows == 1
