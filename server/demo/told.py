"""Which frames can fairly be held out: those told by words that training knows from others.

A model that is trained from nothing knows a word only from the texts that it was shown, so a
frame that holds the only words which tell its label is vocabulary, and always in training.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from server.demo.frames import Split, share

KNOWN_FRAMES = 2
"""A word is known to tell a label when it stands in so many of the label's training frames ..."""
KNOWN_SHARE = 0.6
"""... and these are at least this share of all training frames that it stands in."""
TELLING_WORDS = 2
"""How many such words, or slots, a frame must have to be held out."""

_WORD = re.compile(r"\{\w+|[a-z][a-z'-]+")


def splits(frames: Mapping[str, tuple[str, ...]], labels: frozenset[str]) -> Mapping[str, Split]:
    """Return the split of every frame of the groups `label` and `label.something`.

    About 80 % are for training anyway. Of the others, those that training knows the words of are
    held out, and the rest joins it.
    """
    standing: dict[str, Counter[str]] = defaultdict(Counter)
    for label, frame in _of(frames, labels):
        if share(frame) < 0.8:
            for word in _words(frame):
                standing[word][label] += 1
    return {
        frame: _split(share(frame)) if _is_told(frame, label, standing) else "train"
        for label, frame in _of(frames, labels)
    }


def _split(at: float) -> Split:
    return "train" if at < 0.8 else "validation" if at < 0.88 else "test"


def _of(frames: Mapping[str, tuple[str, ...]], labels: frozenset[str]) -> Iterator[tuple[str, str]]:
    for group, texts in frames.items():
        label = group.partition(".")[0]
        if label in labels:
            yield from ((label, text) for text in texts)


def _is_told(frame: str, label: str, standing: Mapping[str, Counter[str]]) -> bool:
    telling = [
        word
        for word in _words(frame)
        if (among := standing.get(word)) is not None
        and among[label] >= KNOWN_FRAMES
        and among[label] >= KNOWN_SHARE * among.total()
    ]
    return len(telling) >= TELLING_WORDS


def _words(frame: str) -> frozenset[str]:
    return frozenset(_WORD.findall(frame.lower()))
