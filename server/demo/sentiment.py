"""The review task: one short review is positive, neutral or negative."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import replace

from server.demo.carriers import carrier_group, spread
from server.demo.frames import Book, Split, Writer, labelled
from server.demo.noise import noisy
from server.types import Example

DESCRIPTION = "Whether a customer's review is positive, neutral or negative."

LABELS: dict[str, str] = {
    "positive": "The writer is pleased, on balance, and would choose it again.",
    "neutral": "The writer only states facts, is indifferent, or praises and blames evenly.",
    "negative": "The writer is displeased, on balance, and would not choose it again.",
}

TRY: tuple[str, ...] = (
    "The new tent kept all four of us dry through a stormy night, I'm over the moon.",
    "Pretty cover, shame about the story. I gave up before lunch.",
    "Our room faced the car park and breakfast ended at ten.",
    "I wouldn't say it's terrible, but I certainly won't order from them again.",
    "Best haircut I've had in ages, and she didn't even rush me!",
)

OPEN_SLOTS = ("item", "part", "name", "brand", "city", "who", "staff", "stuff", "colour", "items")

_TOPICS = ("product", "food", "stay", "app", "media", "service")
_WEIGHTS = (30, 18, 12, 14, 12, 14)
_SIZES = (("short", 0.06), ("one", 0.20), ("two", 0.40), ("three", 0.34))
_CARRIED = 0.5


@functools.cache
def book() -> Book:
    """The frames and words of the review task, read once."""
    written = Book.load(
        "sentiment_words", "sentiment_frames", "sentiment_more", open_slots=OPEN_SLOTS
    )
    frames, splits = spread(written.frames)
    return replace(written, frames=frames, splits=splits)


def rows(split: Split, count: int, seed: int) -> Iterator[Example]:
    """`count` labelled reviews of a split, balanced over the labels, the same for a seed."""
    rng = random.Random(f"sentiment {split} {seed}")
    return labelled(tuple(LABELS), lambda label, rng: _review(label, split, rng), count, rng)


def documents(count: int, seed: int) -> Iterator[str]:
    """`count` training reviews as plain text, to learn the language from."""
    for example in rows("train", count, seed):
        yield str(example.input)


def _review(label: str, split: Split, rng: random.Random) -> str:
    (topic,) = rng.choices(_TOPICS, _WEIGHTS)
    writer = Writer(book(), split, rng, topic, steady=("item",))
    (size,) = rng.choices([name for name, _ in _SIZES], [weight for _, weight in _SIZES])
    full = book().group(label, split), book().group(f"{label}.{topic}", split)
    carriers = tuple(
        frame
        for name in ("", "short", topic)
        for frame in book().group(f"{label}.{carrier_group(name)}", split)
    )
    short = book().group(f"{label}.short", split) or carriers
    facts = book().group("facts", split)

    def main() -> str:
        general, special = full
        if not general or rng.random() < _CARRIED:
            return rng.choice(carriers)
        if label == "neutral" and facts and rng.random() < 0.12:
            return rng.choice(facts)
        own = special and rng.random() < (0.4 if label == "neutral" else 0.3)
        return rng.choice(special if own else general)

    if size == "short":
        frames = [rng.choice(short)]
    elif size == "one":
        frames = [main()]
    elif size == "two":
        second = main() if rng.random() < 0.75 else rng.choice(short)
        frames = [main(), second]
        if facts and rng.random() < 0.35:
            frames[0] = rng.choice(facts)
    else:
        frames = [main(), main(), rng.choice(short) if rng.random() < 0.4 else main()]
        if facts and rng.random() < 0.45:
            frames[0] = rng.choice(facts)
    frames = list(dict.fromkeys(frames))
    text = " ".join(writer.write(frame) for frame in frames)
    return noisy(text, rng)
