"""Every kind of task, adapters and a full model, on real vLLM servers with random weights.

What is random about the weights is not the arithmetic: transformers computes what the answers
must be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from server.prompt import PromptTemplate, plain_text_tokenizer
from server.specialist import SpecialistCard
from tests.integration.fleet_process import (
    READY_SECONDS,
    RunningFleet,
    await_that,
    running_fleet,
)
from tests.real_engine import free_port
from tests.tiny_fleet import INVOICE_SCHEMA, card, cards, labels, write_specialist
from tests.tiny_model import LABEL_IDS, write_tiny_adapter, write_tiny_base

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SCHEMA: dict[str, Any] = INVOICE_SCHEMA
LABELLED = {"colour": ("red", "green", "blue"), "topics": ("art", "sport")}
TEXT = "the label, yes or no?"


class Oracle:
    """What transformers says the next token's logits are."""

    def __init__(self, base: Path, adapter: Path | None = None) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self._torch = torch
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        self._model = (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()

    def logprobs(self, prompt: tuple[int, ...], token_ids: tuple[int, ...]) -> dict[int, float]:
        """Return the log-probabilities of some tokens, over the whole vocabulary."""
        with self._torch.inference_mode():
            logits = self._model(self._torch.tensor([prompt])).logits[0, -1].float()
        values = self._torch.log_softmax(logits, -1)[list(token_ids)].tolist()
        return dict(zip(token_ids, values, strict=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two tiny models, an adapter a task, and complete cards."""
    root = tmp_path_factory.mktemp("kinds")
    base = write_tiny_base(root / "specialists" / "base")
    template_of = _templates(base)
    content = cards()
    content["mute"] = card("mute", "classify", labels=labels("on", "off"))
    for seed, (task, one) in enumerate(content.items(), start=1):
        home = root / "specialists" / task
        write_tiny_adapter(home, base, seed=seed)
        one["golden"] = _golden(one, template_of, Oracle(base, home))
        write_specialist(home, one)
    _silence(root / "specialists" / "mute")
    mood = write_tiny_base(root / "specialists" / "mood", seed=9)
    full = card("mood", "classify", labels=labels("glad", "sad"), form="full")
    full["golden"] = _golden(full, template_of, Oracle(mood))
    write_specialist(mood, full)
    toml = "[workers.base]\nmodel = 'specialists/base'\nargs = { max-model-len = 320 }\n"
    toml += "[workers.mood]\nmodel = 'specialists/mood'\nargs = { max-model-len = 320 }\n"
    for task in [*content, "mood"]:
        worker = "mood" if task == "mood" else "base"
        toml += f"[tasks.{task}]\nspecialist = 'specialists/{task}'\nworker = '{worker}'\n"
    (root / "fleet.toml").write_text(toml)
    return root


@pytest.fixture(scope="module")
def fleet(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """Yield that fleet; `mute` never becomes ready, everything else has."""
    gateway = free_port()
    log = tmp_path_factory.mktemp("log") / "up.log"
    mood = {"FLEET__WORKERS__MOOD__PORT": str(gateway + 40)}
    with running_fleet(root / "fleet.toml", (gateway, gateway + 30), log, mood) as running:
        running.await_health(503, 60)

        def only_mute_is_missing() -> bool | None:
            tasks = running.http.get("/health/tasks").json()["tasks"]
            return [task["task"] for task in tasks if not task["ready"]] == ["mute"] or None

        await_that(only_mute_is_missing, READY_SECONDS, lambda: log.read_text()[-4000:])
        yield running


def _templates(base: Path) -> Any:
    tokenizer = plain_text_tokenizer((base / "tokenizer.json").read_text())
    return lambda one: PromptTemplate(SpecialistCard.model_validate(one).prompt, tokenizer)


def _golden(one: Mapping[str, Any], template_of: Any, oracle: Oracle) -> list[dict[str, Any]]:
    value = one["examples"][0]
    prompt = template_of(one).encode(value).token_ids
    return [{"input": value, "logprobs": oracle.logprobs(prompt, LABEL_IDS)}]


def _silence(adapter: Path) -> None:
    """Make an adapter do nothing, as one does whose modules vLLM does not find by their names."""
    from safetensors.torch import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: weight * 0 for name, weight in weights.items()}, file)


def prompt_of(root: Path, task: str) -> tuple[int, ...]:
    one = SpecialistCard.model_validate_json(
        (root / "specialists" / task / "specialist.json").read_bytes()
    )
    tokenizer = plain_text_tokenizer((root / "specialists/base/tokenizer.json").read_text())
    return PromptTemplate(one.prompt, tokenizer).encode(TEXT).token_ids


def ask(fleet: RunningFleet, task: str, value: Any = TEXT) -> Any:
    response = fleet.http.post(f"/v1/tasks/{task}", json={"input": value})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("task", ["colour", "mood"])
def test_classify_is_the_models_own_distribution(
    fleet: RunningFleet, root: Path, task: str
) -> None:
    names = {"colour": ("red", "green", "blue"), "mood": ("glad", "sad")}[task]
    temperature = 1.5 if task == "colour" else 1.0
    home = root / "specialists"
    oracle = Oracle(home / "mood") if task == "mood" else Oracle(home / "base", home / task)
    logprobs = oracle.logprobs(prompt_of(root, task), LABEL_IDS[: len(names)])
    weights = [math.exp(value / temperature) for value in logprobs.values()]
    expected = {name: w / sum(weights) for name, w in zip(names, weights, strict=True)}
    assert ask(fleet, task)["output"]["scores"] == pytest.approx(expected, abs=0.03)


def test_tag_scores_are_independent(fleet: RunningFleet, root: Path) -> None:
    home = root / "specialists"
    ids = (*LABEL_IDS[:2], LABEL_IDS[5])
    art, sport, none = (
        Oracle(home / "base", home / "topics").logprobs(prompt_of(root, "topics"), ids).values()
    )
    expected = {
        "art": 1 / (1 + math.exp(none - art)),
        "sport": 1 / (1 + math.exp(none - sport)),
    }
    output = ask(fleet, "topics")["output"]
    assert output["scores"] == pytest.approx(expected, abs=0.03)
    assert output["labels"] == [name for name, score in output["scores"].items() if score >= 0.5]


def test_labels_said_as_words_have_probabilities(fleet: RunningFleet, root: Path) -> None:
    output = ask(fleet, "spoken")["output"]
    assert set(output["scores"]) == {"good", "bad"}
    assert sum(output["scores"].values()) == pytest.approx(1)
    # The words "yes" and "no" share no first letter, so the first token decides: its
    # probability, summed over the ways to begin each word, is what the scores must be.
    home = root / "specialists"
    oracle = Oracle(home / "base", home / "spoken")
    tokenizer = plain_text_tokenizer((home / "base" / "tokenizer.json").read_text())
    vocabulary = tokenizer.get_vocab()
    begins = {
        label: (
            # A byte token spells the first letter, too, and the mask allows it.
            vocabulary[f"<0x{ord(word[0]):02X}>"],
            *(n for piece, n in vocabulary.items() if piece and word.startswith(piece)),
        )
        for label, word in (("good", "yes"), ("bad", "no"))
    }
    prompt = prompt_of(root, "spoken")
    mass = {
        label: sum(math.exp(value) for value in oracle.logprobs(prompt, ids).values())
        for label, ids in begins.items()
    }
    expected = {label: value / sum(mass.values()) for label, value in mass.items()}
    assert output["scores"] == pytest.approx(expected, abs=0.03)


def test_extract_is_valid_though_the_model_knows_nothing(fleet: RunningFleet) -> None:
    response = fleet.http.post("/v1/tasks/invoice", json={"inputs": [f"x{n}" for n in range(20)]})
    results = response.json()["results"]
    valid = [one["output"]["data"] for one in results if "output" in one]
    assert valid
    for data in valid:
        Draft202012Validator(SCHEMA).validate(data)
    codes = {one["error"]["code"] for one in results if "error" in one}
    assert codes <= {"invalid_output"}


def test_generate_streams_and_ends_by_its_budget(fleet: RunningFleet) -> None:
    answer = ask(fleet, "story", {"hero": "a fox", "place": "a hill"})
    assert answer["output"]["finish_reason"] in ("stop", "length")
    assert 0 < answer["usage"]["completion_tokens"] <= 24


def test_an_adapter_that_answers_like_its_base_is_refused_and_named(fleet: RunningFleet) -> None:
    replica = fleet.http.get("/v1/fleet").json()["workers"]["base"]["replicas"][0]
    (refused,) = replica["refused"]
    assert refused.startswith("mute@")
    assert "base" in replica["refused"][refused]
    assert replica["state"] == "degraded"
    response = fleet.http.post("/v1/tasks/mute", json={"input": TEXT})
    assert response.status_code == 503
    assert refused in response.json()["error"]["message"]
    assert refused in fleet.log.read_text()
    assert fleet.http.get("/health/tasks/mute").status_code == 503
    assert fleet.http.get("/health/tasks/colour").status_code == 200
