"""Review frames that say nothing themselves: what fills them makes them praise or blame.

A model that is trained from nothing knows a word only from the texts that it was shown. A frame
such as "It wobbled." holds its own meaning, and nobody could guess it who never met it: such
frames are vocabulary, and always in training. A frame such as "After {span} I can say: {praise}."
carries whatever fills it. Each of these *carriers* is written for every label that it can carry,
so that its own words tell nothing; and it is these that can be held out fairly.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from server.demo.frames import Split, share, slots_of

# A positive slot and what stands in its place in a negative and in a neutral text.
BLAME = {
    "good": "bad", "fine": "foul", "great": "awful", "goodthing": "badthing",
    "goodnoun": "badnoun", "goodfeel": "badfeel", "goodadverb": "badadverb", "goodadv": "badadv",
    "better": "worse", "recommend": "warn", "kind": "rude", "praise": "gripe",
}  # fmt: skip
SHRUG = {"good": "mid", "praise": "shrug"}
TELLING: Mapping[str, frozenset[str]] = {
    "positive": frozenset(BLAME),
    "negative": frozenset(BLAME.values()),
    "neutral": frozenset(SHRUG.values()),
}
_TELLING_ELSEWHERE = frozenset(
    [
        "goodverb",
        "stronggood",
        "strongbad",
        "nice",
        "minor",
        "goodplain",
        "badplain",
        "glad",
        "stars5",
    ]
)
_EVERY_TELLING = _TELLING_ELSEWHERE.union(*TELLING.values())

# Words that turn, weaken or lean, though they stand in frames of several labels.
_LEANING = re.compile(
    r"\b(not|no|never|neither|nor|but|although|though|despite|even|hard|rare(ly)?|anything|nothing"
    r"|less|more|hardly|cannot|without|only|sometimes|too|thanks?|loved?|hated?|plus|minus|best"
    r"|worst|great|good|bad|zero|five|three|ten|half|stars?|recommend(ed)?|special|enough|broke"
    r"|early|hurt|reviews?|wrong|right|critics|crash(es)?|forget|slow|hidden|tired|sent|worried"
    r"|well|better|expected|lot|waited|late|ads|cheap|easy|simple|everything|why|how|who|treated"
    r"|left|such|what|like|need|years|worry|laughed|always|everywhere|stayed|after one|fit|went)\b"
    r"|n't|\?",
    re.IGNORECASE,
)
_SLOT = re.compile(r"\{(\w+)((?::\w+)?)\}")
_NEUTRAL_TO_GOOD = {neutral: good for good, neutral in SHRUG.items()}
_BAD_TO_GOOD = {bad: good for good, bad in BLAME.items()}


def carriers(frames: Mapping[str, tuple[str, ...]]) -> Mapping[str, frozenset[str]]:
    """Return the carriers among frames grouped by `label` or `label.topic`, by their topic.

    They are given with positive slots. Every word of a carrier stands in frames of two labels at
    least, so that no word of it tells one.
    """
    spoken: dict[str, set[str]] = defaultdict(set)
    for group, texts in frames.items():
        for text in texts:
            for word in _words(text):
                spoken[word].add(group.partition(".")[0])
    found: dict[str, set[str]] = defaultdict(set)
    for group, texts in frames.items():
        label, _, topic = group.partition(".")
        for text in texts:
            told = slots_of(text) & _EVERY_TELLING
            if told and told <= TELLING.get(label, frozenset()) and _is_plain(text, spoken):
                found[topic].add(_with_slots(text, {**_NEUTRAL_TO_GOOD, **_BAD_TO_GOOD}))
    return {topic: frozenset(texts) for topic, texts in found.items()}


def spread(
    frames: Mapping[str, tuple[str, ...]],
) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, Split]]:
    """Return the frames with every carrier under every label, and the split of each carrier.

    Carriers leave their groups for groups of their own: `label.carrier`, or with a topic
    `label.carrier-topic`. A fifth of them is for validation and another fifth for the test, each
    with all of its labels; every other frame is for training.
    """
    carried: dict[str, list[str]] = defaultdict(list)
    splits: dict[str, Split] = {}
    for topic, texts in carriers(frames).items():
        for text in sorted(texts):
            at = share(text)
            for label, written in _by_label(text):
                carried[f"{label}.{carrier_group(topic)}"].append(written)
                splits[written] = "train" if at < 0.6 else "validation" if at < 0.8 else "test"
    kept = {
        group: tuple(text for text in texts if text not in splits)
        for group, texts in frames.items()
    }
    return {**kept, **{group: tuple(texts) for group, texts in carried.items()}}, splits


def carrier_group(topic: str) -> str:
    """Return the part after the dot of the name of a topic's group of carriers."""
    return f"carrier-{topic}" if topic else "carrier"


def _by_label(text: str) -> Iterable[tuple[str, str]]:
    yield "positive", text
    yield "negative", _with_slots(text, BLAME)
    if slots_of(text) & BLAME.keys() <= SHRUG.keys():
        yield "neutral", _with_slots(text, SHRUG)


def _is_plain(text: str, spoken: Mapping[str, set[str]]) -> bool:
    bare = _SLOT.sub(" ", text)
    return not _LEANING.search(bare) and all(len(spoken[word]) > 1 for word in _words(text))


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z']+", _SLOT.sub(" ", text).lower()))


def _with_slots(text: str, names: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda slot: f"{{{names.get(slot[1], slot[1])}{slot[2]}}}", text)
