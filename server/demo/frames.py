"""Frames: sentences with slots, their split, and their filling."""

from __future__ import annotations

import functools
import hashlib
import random
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal, TypeAlias

from server.types import Example

Split: TypeAlias = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_TRIES = 12
"""How often a text that was there before is written again."""


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, on every machine and in every run."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_of(frame: str) -> Split:
    """The split that a frame belongs to: about 80 % train, 8 % validation, 12 % test."""
    at = share(frame)
    if at < 0.80:
        return "train"
    return "validation" if at < 0.88 else "test"


def held_out(word: str) -> bool:
    """Whether a word of an open slot is kept away from training: about one in ten."""
    return share("word " + word) < 0.10


@dataclass(frozen=True, slots=True)
class _Slot:
    name: str
    bound: str | None


@dataclass(frozen=True, slots=True)
class _Choice:
    options: tuple[tuple[_Node, ...], ...]


_Node: TypeAlias = "str | _Slot | _Choice"

_TOKEN = re.compile(r"\{(\w+)(?::(\w+))?\}|([\[\]|])")


@functools.cache
def _parse(frame: str) -> tuple[_Node, ...]:
    stack: list[list[list[_Node]]] = [[[]]]
    at = 0
    for match in _TOKEN.finditer(frame):
        if match.start() > at:
            stack[-1][-1].append(frame[at : match.start()])
        at = match.end()
        mark = match.group(3)
        if mark is None:
            stack[-1][-1].append(_Slot(match.group(1), match.group(2)))
        elif mark == "[":
            stack.append([[]])
        elif mark == "|" and len(stack) > 1:
            stack[-1].append([])
        elif mark == "]" and len(stack) > 1:
            options = tuple(tuple(option) for option in stack.pop())
            stack[-1][-1].append(_Choice(options))
        else:
            raise ValueError(f"unbalanced {mark!r} in the frame {frame!r}")
    if len(stack) > 1:
        raise ValueError(f"unclosed '[' in the frame {frame!r}")
    stack[0][0].append(frame[at:])
    return tuple(stack[0][0])


def slots_of(frame: str) -> frozenset[str]:
    """The names of the slots that a frame can ask for."""

    def walk(nodes: tuple[_Node, ...]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, _Slot):
                yield node.name
            elif isinstance(node, _Choice):
                for option in node.options:
                    yield from walk(option)

    return frozenset(walk(_parse(frame)))


@dataclass(frozen=True)
class Book:
    """The hand-written material of one task: frames by group, and words by topic and slot.

    A frame holds slots (`{item}`, or `{item:x}` where every `x` is the same item within one
    text) and choices (`[one|other|]`). A word may hold slots itself.
    """

    frames: Mapping[str, tuple[str, ...]]
    words: Mapping[str, Mapping[str, tuple[str, ...]]]
    open_slots: frozenset[str]
    """Slots whose vocabulary is partly held out of training."""
    splits: Mapping[str, Split] | None = None
    """The split of each frame that can be held out, all others being for training; or None:
    every frame can be, and `split_of` says which is."""

    @classmethod
    def load(cls, *names: str, open_slots: Sequence[str]) -> Book:
        """Reads `data/<name>.toml` files: tables of frames (one a line) and of words (`;`)."""
        frames: dict[str, tuple[str, ...]] = {}
        words: dict[str, dict[str, tuple[str, ...]]] = {}
        for name in names:
            source = resources.files("server.demo").joinpath("data", f"{name}.toml")
            raw = tomllib.loads(source.read_text(encoding="utf-8"))
            for group, text in raw.get("frames", {}).items():
                frames[group] = _distinct((*frames.get(group, ()), *text.splitlines()))
            for topic, slots in raw.get("words", {}).items():
                into = words.setdefault(topic, {})
                for slot, text in slots.items():
                    found = text.replace("\n", ";").split(";")
                    into[slot] = _distinct((*into.get(slot, ()), *found))
        book = cls(frames, words, frozenset(open_slots))
        book._check()
        return book

    def split(self, frame: str) -> Split:
        """The split that a frame of this book belongs to."""
        return split_of(frame) if self.splits is None else self.splits.get(frame, "train")

    def _check(self) -> None:
        known = {slot for slots in self.words.values() for slot in slots}
        texts = [frame for group in self.frames.values() for frame in group]
        texts += [w for slots in self.words.values() for group in slots.values() for w in group]
        for text in texts:
            missing = slots_of(text) - known
            if missing:
                raise ValueError(f"no words for {sorted(missing)} in {text!r}")

    @functools.cached_property
    def _by_split(self) -> Mapping[tuple[str, Split], tuple[str, ...]]:
        return {
            (group, split): tuple(frame for frame in frames if self.split(frame) == split)
            for group, frames in self.frames.items()
            for split in SPLITS
        }

    def group(self, name: str, split: Split) -> tuple[str, ...]:
        """The frames of a group that belong to a split; empty for an unknown group."""
        return self._by_split.get((name, split), ())

    @functools.cached_property
    def _pools(self) -> dict[tuple[str, str, bool], tuple[tuple[str, ...], tuple[str, ...]]]:
        return {}

    def pool(self, slot: str, topic: str, split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The words of a slot under a topic: all that the split may use, and the held-out ones."""
        key = (slot, topic, split == "train")
        pools = self._pools
        if key not in pools:
            words = self.words.get("any", {}).get(slot, ())
            if topic != "any":
                words += self.words.get(topic, {}).get(slot, ())
            kept: tuple[str, ...] = ()
            if slot in self.open_slots:
                kept = tuple(word for word in words if held_out(word))
                if split == "train":
                    words, kept = tuple(word for word in words if not held_out(word)), ()
            if not words:
                raise ValueError(f"no words for {slot!r} under {topic!r}")
            pools[key] = (words, kept)
        return pools[key]


class Writer:
    """Fills the frames of one text: bound slots agree, steady ones mostly, free ones differ."""

    def __init__(
        self,
        book: Book,
        split: Split,
        rng: random.Random,
        topic: str = "any",
        steady: Sequence[str] = (),
    ) -> None:
        self._book = book
        self._split: Split = split
        self._rng = rng
        self._topic = topic
        self._bound: dict[tuple[str, str], str] = {}
        self._used: dict[str, set[str]] = {}
        self._steady = steady
        self._last: dict[str, str] = {}
        self._here: set[str] = set()

    def write(self, frame: str) -> str:
        """The frame with its slots filled and its choices made, with capitals where due."""
        self._here.clear()
        return tidy(self._expand(_parse(frame)))

    def _expand(self, nodes: tuple[_Node, ...]) -> str:
        parts: list[str] = []
        for node in nodes:
            if isinstance(node, str):
                parts.append(node)
            elif isinstance(node, _Choice):
                parts.append(self._expand(self._rng.choice(node.options)))
            else:
                parts.append(self._word(node))
        return "".join(parts)

    def _word(self, slot: _Slot) -> str:
        if slot.bound is not None and (slot.name, slot.bound) in self._bound:
            return self._bound[slot.name, slot.bound]
        if slot.name in self._last and slot.name not in self._here and self._rng.random() < 0.85:
            self._here.add(slot.name)
            return self._last[slot.name]
        self._here.add(slot.name)
        words, kept = self._book.pool(slot.name, self._topic, self._split)
        used = self._used.setdefault(slot.name, set())
        if kept and self._rng.random() < 0.5:
            words = kept
        word = self._rng.choice(words)
        for _ in range(4):
            if word not in used:
                break
            word = self._rng.choice(words)
        used.add(word)
        text = self._expand(_parse(word)) if "{" in word or "[" in word else word
        if slot.bound is not None:
            self._bound[slot.name, slot.bound] = text
        if slot.name in self._steady:
            self._last[slot.name] = text
        return text


def _distinct(lines: Sequence[str]) -> tuple[str, ...]:
    kept = (line.strip() for line in lines)
    return tuple(dict.fromkeys(line for line in kept if line and not line.startswith("#")))


_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])(?!(?:one|uni|use|usa|usu|eu|once|UK|US))")
_START = re.compile(r"(^|[.!?] +|\n)([a-z])")
_SPACES = re.compile(r" {2,}")


def tidy(text: str) -> str:
    """Mends what filling leaves behind: 'a' before a vowel, doubled spaces, capitals."""
    text = _SPACES.sub(" ", text).strip().replace(" ,", ",").replace(" .", ".")
    text = _ARTICLE.sub(r"\1n ", text)
    return _START.sub(lambda match: match.group(1) + match.group(2).upper(), text)


def labelled(
    labels: Sequence[str],
    write: Callable[[str, random.Random], str],
    count: int,
    rng: random.Random,
) -> Iterator[Example]:
    """`count` rows in random order, balanced over the labels, their texts mostly distinct."""
    seen: set[str] = set()
    for label in _balanced(labels, count, rng):
        text = ""
        for _ in range(_TRIES):
            text = write(label, rng)
            if text not in seen:
                break
        seen.add(text)
        yield Example(input=text, output=label)


def _balanced(labels: Sequence[str], count: int, rng: random.Random) -> Iterator[str]:
    """`count` labels in random order, each as often as the others (give or take one)."""
    done = 0
    while done < count:
        for label in rng.sample(list(labels), len(labels)):
            if done < count:
                yield label
                done += 1
