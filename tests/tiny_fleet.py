"""A whole fleet of random specialists, one of each kind, on the tiny model or on the fake.

The cards are complete; nobody trained the weights. What a test wants to be true of an answer
must follow from the engine's arithmetic, not from its sense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tiny_model import LABEL_IDS, write_tiny_tokenizer

GEMMA_PROMPT = [
    {"control": "<bos>"},
    {"control": "<start_of_turn>"},
    {"text": "user\n"},
    {"input": "text"},
    {"control": "<end_of_turn>"},
    {"text": "\n"},
    {"control": "<start_of_turn>"},
    {"text": "model\n"},
]
INVOICE_SCHEMA = {
    "type": "object",
    "properties": {
        "vendor": {"type": "string", "minLength": 1, "maxLength": 12},
        "currency": {"enum": ["EUR", "USD"]},
    },
    "required": ["vendor", "currency"],
    "additionalProperties": False,
}
STORY_SCHEMA = {
    "type": "object",
    "properties": {"hero": {"enum": ["a hare", "a fox"]}, "place": {"enum": ["a wood", "a hill"]}},
    "required": ["hero", "place"],
    "additionalProperties": False,
}
STORY_PROMPT = [
    {"control": "<bos>"},
    {"control": "<start_of_turn>"},
    {"text": "user\nhero: "},
    {"input": "hero"},
    {"text": "\nplace: "},
    {"input": "place"},
    {"control": "<end_of_turn>"},
    {"text": "\n"},
    {"control": "<start_of_turn>"},
    {"text": "model\n"},
]
COLOURS = ("red", "green", "blue")
GOLDEN_LOGPROBS = {LABEL_IDS[0]: -0.2, LABEL_IDS[1]: -2.3, LABEL_IDS[2]: -2.6}


def card(task: str, kind: str, **more: Any) -> dict[str, Any]:
    """Return a complete card of an adapter, its golden probes made up."""
    return {
        "format": 1,
        "task": task,
        "kind": kind,
        "description": f"The {task} task.",
        "form": "adapter",
        "base_model": {"name": "base"},
        "prompt": GEMMA_PROMPT,
        "max_prompt_tokens": 200,
        "examples": ["the label"],
        "golden": [{"input": "golden", "logprobs": GOLDEN_LOGPROBS}],
        "files": {},
        **more,
    }


def labels(*names: str) -> list[dict[str, Any]]:
    """Return labels that stand on the tiny tokenizer's `<unusedN>`."""
    return [{"label": name, "token_id": LABEL_IDS[n]} for n, name in enumerate(names)]


def cards() -> dict[str, dict[str, Any]]:
    """Return one card of each kind, by task."""
    story = {"hero": "a hare", "place": "a wood"}
    return {
        "colour": card(
            "colour", "classify", labels=labels(*COLOURS), calibration={"temperature": 1.5}
        ),
        "spoken": card(
            "spoken", "classify",
            labels=[{"label": "good", "words": "yes"}, {"label": "bad", "words": "no"}],
        ),
        "topics": card("topics", "tag", labels=labels("art", "sport"), none_token_id=LABEL_IDS[5]),
        "invoice": card(
            "invoice", "extract", schema=INVOICE_SCHEMA, sampling={"max_tokens": 80}
        ),
        "story": card(
            "story", "generate", input_schema=STORY_SCHEMA, prompt=STORY_PROMPT,
            sampling={"max_tokens": 24, "temperature": 0.7}, examples=[story],
            golden=[{"input": story, "logprobs": GOLDEN_LOGPROBS}],
        ),
    }  # fmt: skip


def write_specialist(directory: Path, content: Mapping[str, Any]) -> Path:
    """Write a card into `directory`, and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "specialist.json").write_text(json.dumps(content))
    return directory


def write_fleet(root: Path, worker: str, *, gateway: str = "", variants: str = "") -> Path:
    """Write fleet.toml, the base's tokenizer and every card under `root`; return fleet.toml.

    `worker` is the body of `[workers.base]` beside its model.
    """
    base = root / "specialists" / "base"
    base.mkdir(parents=True, exist_ok=True)
    if not (base / "tokenizer.json").exists():
        write_tiny_tokenizer(base)
    if not (base / "config.json").exists():
        (base / "config.json").write_text("{}")
    text = f"[gateway]\n{gateway}\n[workers.base]\nmodel = 'specialists/base'\n{worker}\n"
    for task, content in cards().items():
        write_specialist(root / "specialists" / task, content)
        text += f"[tasks.{task}]\nspecialist = 'specialists/{task}'\nworker = 'base'\n"
    path = root / "fleet.toml"
    path.write_text(text + variants)
    return path
