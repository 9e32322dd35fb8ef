"""What fleet.toml and the cards together imply, and what does not fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import config, fleet
from server.errors import ConfigError
from server.fleet import Fleet
from server.specialist import file_sha256
from tests.tiny_fleet import cards, labels, write_fleet, write_specialist

Change = Callable[[str], str]
CANARY = "[tasks.colour.variants.canary]\nspecialist = 'specialists/colour-2'\nweight = 5\n"


class Site:
    """A directory with a tiny fleet that a test changes before it is resolved."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = write_fleet(root, "")
        self.base = root / "specialists" / "base"

    def rewrite(self, old: str, new: str) -> None:
        """Change fleet.toml."""
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))

    def append(self, text: str) -> None:
        """Add to fleet.toml."""
        self.path.write_text(self.path.read_text() + text)

    def card(self, directory: str, like: str = "colour", **changes: Any) -> Path:
        """Write a card like that of the task `like`, changed."""
        content = {**cards()[like], **changes}
        return write_specialist(self.root / "specialists" / directory, content)

    def resolve(self) -> Fleet:
        return fleet.resolve(config.load(self.path, {}))

    def faults(self) -> tuple[str, ...]:
        """Return what is wrong; `<file>` stands for fleet.toml and `<root>` for its directory."""
        with pytest.raises(ConfigError) as caught:
            self.resolve()
        return tuple(
            fault.replace(str(self.path), "<file>").replace(str(self.root), "<root>")
            for fault in caught.value.faults
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_fleet_has_every_task_and_every_specialist_on_its_worker(site: Site) -> None:
    whole = site.resolve()
    assert list(whole.variants) == list(cards())
    base = whole.workers["base"]
    assert base.model == str(site.base)
    assert {one.card.task for one in base.adapters} == set(cards())
    assert base.full == ()
    assert base.specialists == base.adapters
    assert base.ports == (8100,)


def test_a_task_without_variants_takes_everything(site: Site) -> None:
    (stable,) = site.resolve().variants["colour"]
    assert (stable.name, stable.weight, stable.key) == ("stable", 100, "tasks.colour")


def test_stable_is_the_first_variant_and_takes_the_rest(site: Site) -> None:
    site.card("colour-2", calibration={"temperature": 3})
    site.append(CANARY)
    stable, canary = site.resolve().variants["colour"]
    assert (stable.name, stable.weight) == ("stable", 95)
    assert (canary.name, canary.weight) == ("canary", 5)
    assert canary.key == "tasks.colour.variants.canary"
    assert canary.worker == stable.worker == "base"
    assert canary.specialist.id != stable.specialist.id


def test_one_specialist_in_two_arms_is_loaded_once_and_proven_once(site: Site) -> None:
    site.append(CANARY.replace("colour-2", "colour"))
    whole = site.resolve()
    stable, canary = whole.variants["colour"]
    assert stable.specialist is canary.specialist
    assert len(whole.workers["base"].adapters) == len(cards())


def test_workers_stand_in_the_files_order_with_ports_only_where_they_run_here(site: Site) -> None:
    site.rewrite(
        "[workers.base]", "[workers.far]\nmodel = 'a/b'\nurls = ['http://a']\n[workers.base]"
    )
    whole = site.resolve()
    assert {name: worker.ports for name, worker in whole.workers.items()} == {
        "far": (),
        "base": (8100,),
    }
    assert list(whole.workers) == ["far", "base"]
    assert whole.workers["far"].model == "a/b"


def test_a_full_model_is_a_worker_of_its_own(site: Site) -> None:
    own = site.card("colour", form="full", golden=[])
    (own / "config.json").write_text("{}")
    site.rewrite("'specialists/colour'\nworker = 'base'", "'specialists/colour'\nworker = 'own'")
    site.append("[workers.own]\nmodel = 'specialists/colour'\n")
    worker = site.resolve().workers["own"]
    assert [one.card.task for one in worker.full] == ["colour"]
    assert worker.adapters == ()


def test_a_full_model_on_anothers_worker_does_not_fit(site: Site) -> None:
    site.card("colour", form="full", golden=[], files={})
    (fault,) = site.faults()
    assert fault.startswith("<file>: tasks.colour.worker: colour@")
    assert "needs a worker of its own" in fault


def test_a_model_of_the_hub_is_its_own_specialist_when_the_card_names_it(site: Site) -> None:
    revision = "a" * 40
    hub = {"name": "google/gemma", "revision": revision}
    site.card("colour", form="full", golden=[], base_model=hub)
    site.rewrite("'specialists/colour'\nworker = 'base'", "'specialists/colour'\nworker = 'own'")
    site.append(f"[workers.own]\nmodel = 'google/gemma'\nrevision = '{revision}'\n")
    assert site.resolve().workers["own"].full
    site.rewrite(revision, "b" * 40)
    (fault,) = site.faults()
    assert fault.startswith("<file>: tasks.colour.worker: ")


def test_an_adapter_of_another_base_does_not_fit(site: Site) -> None:
    site.card("colour", base_model={"name": "other"})
    (fault,) = site.faults()
    assert fault.startswith("<file>: tasks.colour.worker: the adapter colour@")
    assert "was made for the base 'other'" in fault


def test_an_adapter_is_tied_to_the_very_weights_where_its_card_has_their_hash(site: Site) -> None:
    weights = site.base / "model.safetensors"
    weights.write_bytes(b"weights")
    site.card("colour", base_model={"name": "renamed", "sha256": file_sha256(weights)})
    site.resolve()
    weights.write_bytes(b"other weights")
    (fault,) = site.faults()
    assert fault.startswith("<file>: tasks.colour.worker: the adapter colour@")


def test_an_adapter_is_tied_to_its_bases_revision(site: Site) -> None:
    site.rewrite("'specialists/base'", f"'google/base'\nrevision = '{'a' * 40}'")
    for task in cards():
        site.card(task, task, base_model={"name": "google/base", "revision": "a" * 40})
    site.resolve()
    site.card("colour", base_model={"name": "google/base", "revision": "b" * 40})
    (fault,) = site.faults()
    assert fault.startswith("<file>: tasks.colour.worker: ")


def test_a_specialist_of_another_task_does_not_fit(site: Site) -> None:
    site.card("colour", task="color")
    (fault,) = site.faults()
    assert fault == (
        "<file>: tasks.colour.specialist: colour was made for the task 'color', not for 'colour'"
    )


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("labels", {"labels": labels("red", "green", "violet")}),
        ("labels", {"labels": labels("green", "red", "blue")}),
        ("input_schema", {"input_schema": {"type": "string"}}),
    ],
)
def test_a_variant_that_callers_would_notice_is_refused(
    site: Site, key: str, change: dict[str, Any]
) -> None:
    site.card("colour-2", **change)
    site.append(CANARY)
    (fault,) = site.faults()
    assert fault.startswith(
        f"<file>: tasks.colour.variants.canary.specialist: its `{key}` is not that of colour@"
    )


def test_a_specialist_that_is_not_there_names_the_key_and_what_it_says(site: Site) -> None:
    site.rewrite("'specialists/colour'", "'specialists/color'")
    assert site.faults() == (
        "<file>: tasks.colour.specialist: 'specialists/color' is no directory with a "
        "specialist.json: name one",
    )


def test_a_variants_specialist_that_is_not_there_names_the_variants_key(site: Site) -> None:
    site.append(CANARY)
    (fault,) = site.faults()
    assert fault.startswith("<file>: tasks.colour.variants.canary.specialist: ")


def test_a_file_that_is_not_the_one_listed_is_refused(site: Site) -> None:
    directory = site.card("colour", files={"adapter_model.safetensors": "0" * 64})
    (directory / "adapter_model.safetensors").write_bytes(b"x")
    (fault,) = site.faults()
    assert fault.startswith("<root>/specialists/colour/adapter_model.safetensors: not the file")


def test_a_wrong_card_is_one_fault_even_if_two_tasks_use_it(site: Site) -> None:
    site.card("colour", lables=[])
    site.append(CANARY.replace("colour-2", "colour"))
    (fault,) = site.faults()
    assert fault.startswith("<root>/specialists/colour/specialist.json: lables: ")


def test_every_fault_of_a_fleet_is_said_at_once(site: Site) -> None:
    site.card("colour", task="color")
    site.card("topics", "topics", base_model={"name": "other"})
    site.rewrite("'specialists/story'", "'specialists/nowhere'")
    keys = [fault.split(": ")[1] for fault in site.faults()]
    assert sorted(keys) == [
        "tasks.colour.specialist",
        "tasks.story.specialist",
        "tasks.topics.worker",
    ]


@pytest.mark.parametrize("model", ["nowhere", "specialists/nowhere", "a/b/c", "a" * 5000])
def test_a_model_that_is_neither_a_directory_nor_a_hub_id_is_refused(
    site: Site, model: str
) -> None:
    site.rewrite("'specialists/base'", f"'{model}'")
    assert site.faults()[0] == (
        f"<file>: workers.base.model: {model!r} is neither a directory with a config.json nor a "
        'hub id such as "google/gemma-3-270m-it"'
    )


def test_a_directory_without_a_model_in_it_is_refused(site: Site) -> None:
    (site.base / "config.json").unlink()
    (fault,) = site.faults()
    assert fault.startswith("<file>: workers.base.model: ")


def test_a_worker_that_runs_elsewhere_may_have_its_model_there(site: Site) -> None:
    site.rewrite("'specialists/base'", "'/models/base'\nurls = ['http://vllm']")
    assert site.resolve().workers["base"].model == "/models/base"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_whatever_path_stands_there_the_fleet_resolves_or_is_refused_in_words(
    tmp_path: Path, where: str
) -> None:
    site = Site(tmp_path)  # written anew, over what an earlier example left
    site.rewrite("'specialists/colour'", json.dumps(where, ensure_ascii=False))
    site.rewrite("'specialists/base'", json.dumps(where, ensure_ascii=False))
    faults = site.faults()
    assert any(fault.startswith("<file>: tasks.colour.specialist: ") for fault in faults)
    assert not any("\n" in fault for fault in faults)
