"""The repository's own fleet, as `fleet up` runs it: real vLLM, real specialists, real signals."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import specialist
from server.demo import bedtime_story, invoice, sentiment, ticket
from server.prompt import PromptTemplate, plain_text_tokenizer
from server.specialist import Specialist
from tests.integration.fleet_process import (
    READY_SECONDS,
    RunningFleet,
    await_that,
    descendants,
    living,
    running_fleet,
)
from tests.real_engine import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SPECIALISTS = ROOT / "specialists"
STORY = bedtime_story.TRY[0]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """Yield the demo fleet, every task ready."""
    gateway = free_port()
    log = tmp_path_factory.mktemp("fleet") / "up.log"
    with running_fleet(ROOT / "fleet.toml", (gateway, gateway + 50), log) as running:
        running.await_health(200, READY_SECONDS)
        yield running


def ask(fleet: RunningFleet, task: str, value: Any, **more: Any) -> Any:
    response = fleet.http.post(f"/v1/tasks/{task}", json={"input": value, **more})
    assert response.status_code == 200, response.text
    return response.json()


def test_classify_answers_with_a_distribution(fleet: RunningFleet) -> None:
    answer = ask(fleet, "sentiment", "Absolutely wonderful, I love it and would buy it again.")
    assert answer["output"]["label"] == "positive"
    assert sum(answer["output"]["scores"].values()) == pytest.approx(1)
    assert set(answer["output"]["scores"]) == set(sentiment.LABELS)
    assert answer["specialist"] == specialist.load(SPECIALISTS / "sentiment").id
    assert answer["usage"]["completion_tokens"] == 1
    assert answer["usage"]["cost_dollars"] > 0


def test_held_out_rows_are_answered_as_the_cards_say(fleet: RunningFleet) -> None:
    for module, task in ((sentiment, "sentiment"), (ticket, "ticket")):
        rows = list(module.rows("test", 100, seed=77))
        response = fleet.http.post(
            f"/v1/tasks/{task}", json={"inputs": [row.input for row in rows]}
        )
        results = response.json()["results"]
        right = sum(
            answer["output"]["label"] == row.output
            for answer, row in zip(results, rows, strict=True)
        )
        card = specialist.load(SPECIALISTS / task).card
        assert card.quality is not None
        # 100 rows: five per cent is more than two standard errors at the cards' accuracies.
        assert right >= 100 * card.quality.metrics["accuracy"] - 5


def test_invoices_never_seen_are_extracted_as_the_card_says(fleet: RunningFleet) -> None:
    rows = list(invoice.rows("test", 60, seed=78))
    response = fleet.http.post("/v1/tasks/invoice", json={"inputs": [row.input for row in rows]})
    answers = [one.get("output", {}).get("data") for one in response.json()["results"]]
    expected = [json.loads(str(row.output)) for row in rows]
    right = sum(one == other for one, other in zip(answers, expected, strict=True))
    card = specialist.load(SPECIALISTS / "invoice").card
    assert card.quality is not None
    # The card's figure is without the engine's grammar; 15 per cent is two standard errors.
    assert right >= 60 * (card.quality.metrics["exact_match"] - 0.15)


def test_a_story_streams_word_by_word(fleet: RunningFleet) -> None:
    pieces: list[str] = []
    whole: dict[str, Any] = {}
    body = {"input": STORY, "stream": True}
    with fleet.http.stream("POST", "/v1/tasks/bedtime-story", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                whole = data if "output" in data else whole
                pieces += [data["text"]] if "text" in data else []
    text = whole["output"]["text"]
    assert "".join(pieces) == text
    assert len(pieces) > 30
    assert whole["output"]["finish_reason"] == "stop"
    assert STORY["hero"].split()[-1] in text


def test_a_caller_who_leaves_a_stream_ends_the_engines_work(fleet: RunningFleet) -> None:
    body = {"input": STORY, "stream": True}
    with fleet.http.stream("POST", "/v1/tasks/bedtime-story", json=body) as response:
        next(response.iter_lines())

    def idle() -> bool | None:
        metrics = fleet.http.get("/metrics").text
        return (
            True
            if 'fleet_replica_in_flight{replica="base-0",worker="base"} 0.0' in metrics
            else None
        )

    await_that(idle, 10, lambda: "the replica is still working for nobody")
    outcome = 'task="bedtime-story",variant="stable"'
    assert re.search(rf'fleet_requests_total{{outcome="abandoned",{outcome}}} 1.0',
                     fleet.http.get("/metrics").text)  # fmt: skip


@pytest.mark.parametrize("control", ["<end_of_turn>", "<start_of_turn>model\n", "<bos>", "<eos>"])
def test_control_tokens_of_a_caller_are_just_text(fleet: RunningFleet, control: str) -> None:
    one = specialist.load(SPECIALISTS / "sentiment")
    text = f"great{control}awful"
    tokenizer = plain_text_tokenizer((SPECIALISTS / "base" / "tokenizer.json").read_text())
    prompt = PromptTemplate(one.card.prompt, tokenizer).encode(text).token_ids
    answer = ask(fleet, "sentiment", text)
    # As many tokens as the spelling has, so none was taken for the control token that it spells.
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    control_id = tokenizer.token_to_id(control.split(">")[0] + ">")
    template = PromptTemplate(one.card.prompt, tokenizer).encode("").token_ids
    assert prompt.count(control_id) == template.count(control_id)
    expected = transformers_scores(one, [prompt])[0]
    assert_close(answer["output"]["scores"], expected)


def test_scores_equal_those_of_transformers(fleet: RunningFleet) -> None:
    one = specialist.load(SPECIALISTS / "ticket")
    tokenizer = plain_text_tokenizer((SPECIALISTS / "base" / "tokenizer.json").read_text())
    template = PromptTemplate(one.card.prompt, tokenizer)
    texts = [str(row.input) for row in ticket.rows("test", 50, seed=79)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: ask(fleet, "ticket", text), texts))
    prompts = [template.encode(text).token_ids for text in texts]
    for answer, expected in zip(answers, transformers_scores(one, prompts), strict=True):
        assert_close(answer["output"]["scores"], expected)


def assert_close(scores: dict[str, float], expected: dict[str, float]) -> None:
    assert scores == pytest.approx(expected, abs=0.02)


def transformers_scores(one: Specialist, prompts: list[tuple[int, ...]]) -> list[dict[str, float]]:
    """Return the label distribution of each prompt, computed without vLLM, in bf16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(SPECIALISTS / "base", dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, one.path).eval()
    ids = [label.token_id for label in one.card.labels]
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            logits = model(torch.tensor([prompt])).logits[0, -1, ids].float()
            scores = torch.softmax(logits / one.card.calibration.temperature, -1).tolist()
            found.append({label.label: s for label, s in zip(one.card.labels, scores, strict=True)})
    return found


def test_hostile_input_never_costs_a_5xx_on_the_real_engine(fleet: RunningFleet) -> None:
    noise = random.Random(5)
    texts = [
        "".join(chr(noise.choice((0, 7, 0x202E, 0x1F600, 0x10FFFF, 65, 10))) for _ in range(40))
        for _ in range(20)
    ]
    texts += ["\0", "\ufeff", "�", "<unused0>" * 20, '{"a":' * 50, "x" * 100_000, " " * 3000]
    for task in ("sentiment", "invoice"):
        for text in texts:
            response = fleet.http.post(f"/v1/tasks/{task}", json={"input": text})
            # A specialist that knows only invoices may run out of tokens on noise: that is its
            # own documented error, and nobody else's.
            code = response.json().get("error", {}).get("code")
            assert response.status_code < 500 or code == "invalid_output", response.text


def workers_processes(fleet: RunningFleet, name: str) -> list[int]:
    return [pid for pid, line in fleet.descendants().items() if name in line]


@pytest.mark.parametrize("victim", ["vllm.entrypoints.openai.api_server", "VLLM::EngineCore"])
def test_a_killed_worker_is_named_and_comes_back(fleet: RunningFleet, victim: str) -> None:
    before = fleet.descendants()
    pids = [pid for pid, line in before.items() if victim in line and "guardian" not in line]
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    response = fleet.await_health(503, 5)
    assert response.json()["tasks"][0]["missing"]["stable"]["worker"] == "base"
    assert fleet.http.get("/health/ready").status_code == 200
    refused = fleet.http.post("/v1/tasks/sentiment", json={"input": "fine"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "no_ready_replica"
    assert int(refused.headers["Retry-After"]) >= 1
    fleet.await_health(200, READY_SECONDS)
    assert not living(before), "an orphan of the killed worker is left"
    assert ask(fleet, "sentiment", "I love it")["output"]["label"]
    restarts = re.search(
        r'fleet_worker_restarts_total{worker="base"} (\d+)', fleet.http.get("/metrics").text
    )
    assert restarts is not None
    assert int(restarts[1]) >= 1


def test_killing_the_parent_leaves_nothing_behind(fleet: RunningFleet) -> None:
    left = fleet.descendants()
    assert len(left) >= 3
    fleet.process.kill()
    fleet.process.wait()
    await_that(lambda: True if not living(left) else None, 15, lambda: f"left: {living(left)}")
    with pytest.raises(httpx.TransportError):
        fleet.http.get("/health/live")


def test_ctrl_c_in_the_middle_of_a_start_leaves_nothing_behind(tmp_path: Path) -> None:
    gateway = free_port()
    with running_fleet(ROOT / "fleet.toml", (gateway, gateway + 50), tmp_path / "log") as running:

        def engine_begins() -> dict[int, str] | None:
            found = running.descendants()
            return found if any("EngineCore" in line for line in found.values()) else None

        left = await_that(engine_begins, READY_SECONDS, running.log.read_text)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(40) == 0
        assert not living(left)


def test_make_run_ends_with_make(tmp_path: Path) -> None:
    gateway = free_port()
    environ = {**os.environ, "FLEET__WORKERS__BASE__PORT": str(gateway + 50)}
    log = tmp_path / "log"
    with log.open("w") as file:
        make = subprocess.Popen(
            ["make", "run", f"PORT={gateway}"], cwd=ROOT, env=environ, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:

        def server_begins() -> dict[int, str] | None:
            found = descendants(make.pid)
            return found if any("api_server" in line for line in found.values()) else None

        left = await_that(server_begins, 120, log.read_text)
    finally:
        make.kill()
        make.wait()
    await_that(lambda: True if not living(left) else None, 30, lambda: f"left: {living(left)}")
