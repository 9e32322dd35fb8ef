"""Bedtime stories to order: a hero, a place, a mood and a lesson become five or six sentences.

A story opens in its mood at its place, runs through one of the plots that belong to its lesson
(trouble, a meeting, a turn for the better) and ends on the lesson. Combinations of choices fall
into train, validation or test by a stable hash, so test stories were ordered by nobody before.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from server.types import Example

Split = Literal["train", "validation", "test"]
Choice = tuple[str, str, str, str]

DESCRIPTION = "Writes a short bedtime story about a hero, in a place, in a mood, with a lesson."

_STORY: dict[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parent / "data" / "story.toml").read_text("utf-8")
)
FIELDS = ("hero", "place", "mood", "lesson")
HEROES, PLACES, MOODS, LESSONS = (tuple(_STORY[field]) for field in FIELDS)

INPUT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {field: {"type": "string", "enum": list(_STORY[field])} for field in FIELDS},
    "required": list(FIELDS),
    "additionalProperties": False,
}

TRY: tuple[dict[str, str], ...] = (
    {
        "hero": "a tiny dragon",
        "place": "a dusty library",
        "mood": "funny",
        "lesson": "mistakes help us learn",
    },
    {
        "hero": "a shy hedgehog",
        "place": "the moonlit beach",
        "mood": "calm",
        "lesson": "friends come in all shapes",
    },
    {
        "hero": "a little robot",
        "place": "the apple orchard",
        "mood": "dreamy",
        "lesson": "patience brings good things",
    },
    {
        "hero": "a young witch",
        "place": "the castle on the hill",
        "mood": "cosy",
        "lesson": "sharing makes two hearts happy",
    },
)

MIN_WORDS, MAX_WORDS = 70, 110
_PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
}


def rows(split: Split, count: int, seed: int) -> Iterator[Example]:
    """Yield `count` distinct orders and stories of one split, the same ones for the same seed."""
    rng = random.Random(f"bedtime-story:{split}:{seed}")
    choices = combinations(split)
    seen: set[str] = set()
    while len(seen) < count:
        choice = rng.choice(choices)
        story = _tell(choice, rng)
        if story not in seen:
            seen.add(story)
            yield Example(dict(zip(FIELDS, choice, strict=True)), story)


def documents(count: int, seed: int) -> Iterator[str]:
    """Yield stories of the train split as plain texts for pretraining."""
    for row in rows("train", count, seed):
        yield str(row.output)


def combinations(split: Split) -> tuple[Choice, ...]:
    """Return all (hero, place, mood, lesson) choices of a split."""
    every = itertools.product(HEROES, PLACES, MOODS, LESSONS)
    return tuple(choice for choice in every if _split_of(choice) == split)


def _split_of(choice: Choice) -> Split:
    share = int(hashlib.sha256("/".join(choice).encode()).hexdigest()[:12], 16) % 100
    return "test" if share < 10 else "validation" if share < 15 else "train"


def _tell(choice: Choice, rng: random.Random) -> str:
    while True:
        story = _draft(choice, rng)
        if MIN_WORDS <= len(story.split()) <= MAX_WORDS:
            return story


def _draft(choice: Choice, rng: random.Random) -> str:
    hero, place, mood, lesson = (
        _STORY[field][chosen] for field, chosen in zip(FIELDS, choice, strict=True)
    )
    plot = rng.choice(lesson["plots"])
    friend, gender = rng.choice(place["friends"])
    values: dict[str, str] = {
        "hero": choice[0],
        "lesson": choice[3],
        "name": rng.choice(hero["names"]),
        "trait": rng.choice(hero["traits"]),
        "detail": rng.choice(place["details"]),
        "how": rng.choice(mood["how"]),
        "thing": rng.choice(plot["things"]),
        "friend": friend,
        "pal": friend.rpartition(" named ")[2],
        **{key: place[key] for key in ("at", "path", "spot", "top", "bed", "sound")},
        **_PRONOUNS[hero["he"]],
        **{f"f{key}": word for key, word in _PRONOUNS[gender].items()},
    }
    opening = rng.choice(mood["openings"])
    plain = [rng.choice(plot[stage]) for stage in ("problem", "turn", "act")]
    if rng.random() < 0.5:
        plain.append(rng.choice(mood["mids"]))
    sentences = [opening, *plain, rng.choice(mood["closings"])]
    return " ".join(_fill(sentence, values) for sentence in sentences)


def _fill(pattern: str, values: dict[str, str]) -> str:
    def word(hit: re.Match[str]) -> str:
        key = hit[1]
        text = re.sub(r"\{(\w+)\}", word, values[key.lower()])
        return text[:1].upper() + text[1:] if key[0].isupper() else text

    text = re.sub(r"\{(\w+)\}", word, pattern)
    return text[:1].upper() + text[1:]
