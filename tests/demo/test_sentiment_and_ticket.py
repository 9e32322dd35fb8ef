"""The generators of reviews and tickets: balanced, the same for a seed, and split by frame."""

from __future__ import annotations

import itertools
import random
import re
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from server.demo import sentiment, ticket
from server.demo.carriers import carriers, spread
from server.demo.frames import SPLITS, Book, Writer, held_out, tidy
from server.demo.told import splits as told_splits

STRANGERS: dict[str, dict[str, list[str]]] = tomllib.loads(
    Path(__file__).with_name("strangers.toml").read_text(encoding="utf-8")
)

TASKS = [pytest.param(sentiment, id="sentiment"), pytest.param(ticket, id="ticket")]


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_gives_the_same_rows(task: ModuleType) -> None:
    first = list(task.rows("train", 200, 3))
    assert first == list(task.rows("train", 200, 3))
    assert first != list(task.rows("train", 200, 4))
    assert list(task.documents(50, 3)) == [str(row.input) for row in task.rows("train", 50, 3)]


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_balanced_and_none_is_empty(task: ModuleType) -> None:
    for split in SPLITS:
        counts = Counter(row.output for row in task.rows(split, 300, 1))
        assert set(counts) == set(task.LABELS)
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_texts_are_distinct_and_tidy(task: ModuleType) -> None:
    texts = list(task.documents(8_000, 7))
    assert len(set(texts)) >= 0.95 * len(texts)
    for text in texts:
        assert text.strip() == text
        assert text
        assert not set("{}[]|") & set(text)


@pytest.mark.parametrize("task", TASKS)
def test_frames_belong_to_one_split(task: ModuleType) -> None:
    book: Book = task.book()
    for group in book.frames:
        parts = [set(book.group(group, split)) for split in SPLITS]
        assert sum(map(len, parts)) == len(book.frames[group])
        assert not any(a & b for a, b in itertools.combinations(parts, 2))
    told = [f for group, texts in book.frames.items() if label_of(task, group) for f in texts]
    assert sum(book.split(frame) != "train" for frame in told) >= 150


@pytest.mark.parametrize("task", TASKS)
def test_every_label_has_frames_held_out(task: ModuleType) -> None:
    book: Book = task.book()
    for split in ("validation", "test"):
        held = Counter(
            label_of(task, group)
            for group, texts in book.frames.items()
            for frame in texts
            if book.split(frame) == split
        )
        assert set(held) - {None} == set(task.LABELS)


def label_of(task: ModuleType, group: str) -> str | None:
    label = group.partition(".")[0]
    return label if label in task.LABELS else None


def test_a_carrier_is_held_out_with_all_its_labels() -> None:
    frames = {
        "positive": ("The shop is {good} now.", "It glows and is {good}."),
        "negative": ("The shop was {bad}.", "It wobbled."),
        "neutral": ("The shop is {mid} now.", "It was now the shop."),
    }
    found = carriers(frames)
    assert found == {"": frozenset({"The shop is {good} now.", "The shop was {good}."})}
    spread_out, splits = spread(frames)
    assert set(splits) == {
        text.replace("{good}", f"{{{slot}}}")
        for text in found[""]
        for slot in ("good", "bad", "mid")
    }
    for text in found[""]:
        assert (
            len({splits[text.replace("{good}", f"{{{s}}}")] for s in ("good", "bad", "mid")}) == 1
        )
    assert "It wobbled." in spread_out["negative"]
    assert all("The shop" not in text for text in spread_out["negative"])


def test_a_frame_told_by_no_known_word_is_for_training() -> None:
    known = tuple(f"My parcel number {n} is late." for n in range(40))
    letters = "abcdefghijklmnopqrst"
    unknown = tuple(f"{one}{other}x" for one in letters[:8] for other in letters[:5])
    found = told_splits({"delivery": known, "other": unknown}, frozenset({"delivery", "other"}))
    assert {found[frame] for frame in unknown} == {"train"}
    assert "test" in {found[frame] for frame in known}


@pytest.mark.parametrize("task", TASKS)
def test_no_frame_serves_two_labels(task: ModuleType) -> None:
    book: Book = task.book()
    owner: dict[str, str] = {}
    for group, frames in book.frames.items():
        label, _, kind = group.partition(".")
        if label in task.LABELS and kind != "more":
            for frame in frames:
                assert owner.setdefault(frame.lower(), label) == label, frame


@pytest.mark.parametrize("task", TASKS)
def test_held_out_words_never_reach_training(task: ModuleType) -> None:
    book: Book = task.book()
    for topic, slots in book.words.items():
        for slot in book.open_slots & slots.keys():
            words, kept = book.pool(slot, topic, "train")
            assert not kept
            assert not any(held_out(word) for word in words)
            assert len(book.pool(slot, topic, "test")[0]) >= len(words)


@pytest.mark.parametrize("task", TASKS)
def test_the_text_does_not_need_its_label_in_it(task: ModuleType) -> None:
    rows = list(task.rows("train", 2_000, 2))
    named = sum(str(row.output) in str(row.input).lower() for row in rows)
    assert named < 0.25 * len(rows)


@pytest.mark.parametrize("task", TASKS)
def test_strangers_are_strange(task: ModuleType) -> None:
    strangers = STRANGERS[task.__name__.rpartition(".")[2]]
    assert set(strangers) == set(task.LABELS)
    texts = [text for group in strangers.values() for text in group]
    assert len(texts) >= 40
    known = {run for text in task.documents(4_000, 5) for run in runs(text, 7)}
    assert [text for text in (*texts, *task.TRY) if runs(text, 7) & known] == []
    assert len(task.TRY) == 5


def test_frames_are_filled_and_mended() -> None:
    book = Book({}, {"any": {"thing": ("owl", "cat")}}, frozenset())
    writer = Writer(book, "train", random.Random(1))
    first, second = writer.write("{thing:x} and {thing:x}").lower().split(" and ")
    assert first == second
    assert writer.write("[a|a] [owl|owl] , please") == "An owl, please"
    assert tidy("a apple. a user. it is  fine.") == "An apple. A user. It is fine."
    with pytest.raises(ValueError, match="unclosed"):
        writer.write("[one|two")
