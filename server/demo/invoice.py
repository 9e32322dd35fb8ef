"""Synthetic invoices, receipts and payment notices, and what an accountant books from them.

Conventions, so that each text has one right answer:

* `date` is the day of issue; due, order and delivery dates stand beside it as distractors.
* Slashed dates are day-first, occur only with a day above 12, and never in US dollars.
* `$` alone is US dollars; Canadian and Australian dollars say so.
* `amount` is what is to be paid in the end, or was paid; `vendor` stands verbatim in the text.
* "Ltd", "GmbH" and the like never end on a full stop; "Inc.", "Co.", "Corp.", "S.A." always do.

A vendor has a core word (a surname, a noun, an invented word). Core words and layouts fall into
train, validation or test by a stable hash: a test row's vendor and layout were never trained on
(see `layouts` for which layouts can be held out fairly).
"""

from __future__ import annotations

import datetime
import hashlib
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from server.types import Example

Split = Literal["train", "validation", "test"]

DESCRIPTION = "Reads an invoice, receipt or payment notice: vendor, date, total and currency."

CURRENCIES = ("EUR", "USD", "GBP", "CHF", "SEK", "PLN", "CAD", "AUD")

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "vendor": {"type": "string", "minLength": 1, "maxLength": 60},
        "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "amount": {"type": "number", "minimum": 0},
        "currency": {"type": "string", "enum": list(CURRENCIES)},
    },
    "required": ["vendor", "date", "amount", "currency"],
    "additionalProperties": False,
}

TRY: tuple[str, ...] = (
    "Invoice 2025-118 from Harrow & Pike Ltd\nDate: 14 March 2025\nNet: £1,000.00\n"
    "VAT 20%: £200.00\nTotal due: £1,200.00\nPayable by 13 April 2025",
    "Hello Mia,\n\nplease find below our bill of 02.06.2025 for the garden hose, in total 89,90 €. "
    "We would be glad to receive your payment by 16.06.2025.\n\nRegards,\nZumfeld Gardens GmbH",
    "Tolvera Coffee\n2025-09-30 08:14\nespresso $3.20\napple cake $4.60\nTotal $7.80\nThank you!",
    "Reminder: invoice no. 7731 of October 3, 2024 from Brightloop Inc. is still open. "
    "Please transfer CAD 412.75 by October 31, 2024.",
)

# A layout can be held out if each of its places is that of so many others, too; and how many are.
_KNOWN_LAYOUTS = 2
_TEST_LAYOUTS = 7
_HELD_LAYOUTS = 11
_KEY = re.compile(r"\{(vendor|date|total|n_total)\b")
_WORD_BEFORE = re.compile(r"[A-Za-z_]+|[^\sA-Za-z_]")

_DATA = Path(__file__).parent / "data"
_NAMES: dict[str, list[str]] = {
    key: words.split() if isinstance(words, str) else words
    for key, words in tomllib.loads((_DATA / "invoice_names.toml").read_text("utf-8")).items()
}
_POOLS = {
    "S": "surnames",
    "N": "nouns",
    "T": "trades",
    "X": "suffixes",
    "P": "places",
    "A": "adjectives",
    "F": "first",
    "H": "name_heads",
    "E": "name_tails",
}
_LAYOUTS: dict[str, Any] = tomllib.loads((_DATA / "invoice_layouts.toml").read_text("utf-8"))
_WIDE: dict[str, Any] = tomllib.loads((_DATA / "invoice_wide.toml").read_text("utf-8"))
_MACROS: dict[str, str] = _LAYOUTS["macros"] | _WIDE["macros"]
_WIDE_SHARE = 0.2
_DAY_STYLES: list[str] = _LAYOUTS["days"]
_DAYS: dict[str, list[int]] = _LAYOUTS["offsets"]


def rows(split: Split, count: int, seed: int) -> Iterator[Example]:
    """Yield `count` distinct examples of one split, the same ones for the same seed."""
    writer = _Writer(split, random.Random(f"invoice:{split}:{seed}"))
    seen: set[str] = set()
    while len(seen) < count:
        paper = writer.paper()
        if paper.text not in seen:
            seen.add(paper.text)
            yield Example(paper.text, paper.as_json())


def documents(count: int, seed: int) -> Iterator[str]:
    """Yield texts of the train split that teach a base to copy names, dates and amounts."""
    rng = random.Random(f"invoice:documents:{seed}")
    writer = _Writer("train", rng)
    for _ in range(count):
        paper, share = writer.paper(), rng.random()
        if share < 0.1:
            yield paper.text
        elif share < 0.55:
            yield f"{paper.text}\n{paper.fill(rng.choice(_LAYOUTS['ledger']))}"
        else:
            yield paper.fill(rng.choice(_LAYOUTS["copy"]))


def vendor_words(split: Split) -> frozenset[str]:
    """Return the listed core words (surnames, nouns) that vendors of a split are made of."""
    return frozenset(w for w in (*_NAMES["surnames"], *_NAMES["nouns"]) if _split_of(w) == split)


def layouts(split: Split) -> tuple[tuple[str, str], ...]:
    """Return the (kind, layout) pairs of a split.

    Held out are layouts in which the vendor, the date and the total each stand where training
    saw them stand in other layouts ("From: ...", "... of <date>"): a model that is trained from
    nothing cannot guess what a word means that one layout alone uses.
    """
    every = [(kind, layout) for kind in ("prose", "lines", "till") for layout in _LAYOUTS[kind]]
    standing = Counter(place for _, layout in every for place in _places(layout))
    told = [
        (kind, layout)
        for kind, layout in every
        if all(standing[place] > _KNOWN_LAYOUTS for place in _places(layout))
    ]
    ranked = sorted(told, key=lambda pair: _hash_of(pair[1]))
    held = {"test": ranked[:_TEST_LAYOUTS], "validation": ranked[_TEST_LAYOUTS:_HELD_LAYOUTS]}
    if split != "train":
        return tuple(held[split])
    return tuple(pair for pair in every if pair not in ranked[:_HELD_LAYOUTS])


def _places(layout: str) -> frozenset[tuple[str, str]]:
    """Return where a layout has its vendor, date and total: the key, and the words before it."""
    lines = layout.strip().split("\n")
    places = set()
    for number, line in enumerate(lines):
        for found in _KEY.finditer(line):
            before = _WORD_BEFORE.findall(line[: found.start()])
            # At the start of a line, only the first and the last line tell by themselves: a
            # letterhead, a signature. In between it takes the layout's own heading.
            edge = "^" if number == 0 else "$" if number == len(lines) - 1 else lines[0]
            places.add((found[1], " ".join(before[-2:]).lower() if before else edge))
    return frozenset(places)


def _hash_of(text: str) -> int:
    return int(hashlib.sha256(text.strip().lower().encode()).hexdigest()[:12], 16)


def _split_of(word: str) -> Split:
    share = _hash_of(word) % 100
    return "test" if share < 12 else "validation" if share < 18 else "train"


class _Writer:
    """Draws names, and whole papers, of one split."""

    def __init__(self, split: Split, rng: random.Random) -> None:
        self.rng = rng
        self._split = split
        self._layouts = layouts(split)
        self._pools = {key: _NAMES[name] for key, name in _POOLS.items()}
        for key in "SN":
            self._pools[key] = [word for word in self._pools[key] if _split_of(word) == split]
        if split != "test":
            self._pools["T"] = [word for word in self._pools["T"] if _split_of(word) != "test"]

    def paper(self) -> _Paper:
        kind, layout = self.rng.choice(self._layouts)
        if self._split == "train" and self.rng.random() < _WIDE_SHARE:
            layout = self.rng.choice(_WIDE["wide"][kind])
        return _Paper(self, kind, layout)

    def vendor(self) -> str:
        while True:
            pattern = self.rng.choice(_NAMES["patterns"])
            name = re.sub(r"\{(.)\}", lambda hit: self._word(hit[1]), pattern)
            case = self.rng.random()
            if case < 0.06:
                name = name.upper()
            elif case < 0.09:
                name = name.lower()
            if 3 <= len(name) <= 48:
                return name

    def person(self) -> str:
        return f"{self._word('F')} {self._word('S')}"

    def _word(self, key: str) -> str:
        if not key.isupper() and key != "#":
            return self._word(key.upper()).lower()
        if key in self._pools:
            return self.rng.choice(self._pools[key])
        if key == "L":
            return self.rng.choice("ABCDEFGHJKLMNPRSTW")
        if key == "#":
            return str(self.rng.randint(2, self.rng.choice((99, 99, 999))))
        while True:
            word = self._invented(key)
            if _split_of(word) == self._split:
                return word

    def _invented(self, key: str) -> str:
        rng = self.rng
        if key == "K":
            return "".join(rng.choice("ABCDEFGHIJKLMNOPRSTUVWXZ") for _ in range(rng.randint(2, 4)))
        if key == "C":
            tail = self._word("E")
            return self._word("H") + (tail.title() if rng.random() < 0.3 else tail)
        word = "".join(
            rng.choice(_NAMES["onsets"])
            + rng.choice(_NAMES["vowels"])
            + (rng.choice(_NAMES["codas"]) if rng.random() < 0.25 else "")
            for _ in range(rng.choice((2, 2, 2, 3, 3)))
        )
        return word.title()


class _Paper:
    """One filled layout, and the facts in it."""

    def __init__(self, writer: _Writer, kind: str, layout: str) -> None:
        rng = self._rng = writer.rng
        self._writer = writer
        self._vendor = writer.vendor()
        self._date = datetime.date(2019, 1, 1) + datetime.timedelta(rng.randrange(3000))
        self._currency = rng.choice(CURRENCIES)
        low, high = (200, 30_000) if kind == "till" else (500, 2_500_000)
        total = int(low * (high / low) ** rng.random())
        self._cents = _sums(rng, max(100, total // 100 * 100) if rng.random() < 0.3 else total)
        money = _LAYOUTS["money"][self._currency]
        self._shape: str = rng.choice(money["shapes"])
        self._group, self._point = _LAYOUTS["numbers"][rng.choice(money["numbers"])]
        self._whole = rng.random() < 0.35
        self._day_style = rng.choice(_DAY_STYLES)
        self._values: dict[str, str] = {}
        self.text = self.fill(layout)
        if kind != "till" and rng.random() < 0.15:
            gap = rng.choice((" | ", "; ", " ")) if kind == "lines" else " "
            self.text = re.sub(r"\n+", gap, self.text)

    def as_json(self) -> str:
        vendor, date, amount, currency = map(self.value, ("vendor", "iso", "amount", "cur"))
        return f'{{"vendor":"{vendor}","date":"{date}","amount":{amount},"currency":"{currency}"}}'

    def fill(self, layout: str) -> str:
        """Resolve `?` and `~` lines, <macros>, [a|b] choices and {values}."""
        lines: list[str] = []
        shuffled: list[str] = []
        for line in [*layout.strip().split("\n"), ""]:
            if "?" in line[:2] and self._rng.random() < 0.5:
                continue
            if line.startswith("~"):
                shuffled.append(line.lstrip("~?"))
                continue
            line = line.removeprefix("?")
            self._rng.shuffle(shuffled)
            lines += [*shuffled, line]
            shuffled = []
        text = "\n".join(lines).rstrip()
        text = re.sub(r"<(\w+)>", lambda hit: f"[{_MACROS[hit[1]]}]", text)
        while "[" in text:
            text = re.sub(
                r"\[([^\[\]]*)\]", lambda hit: self._rng.choice(hit[1].split("|")), text, count=1
            )
        text = re.sub(r"\{(\w+)\}", lambda hit: self.value(hit[1]), text)
        return text.replace("..", ".").strip()

    def value(self, key: str) -> str:
        """Return what stands for a key: the same text each time within one paper."""
        if key not in self._values:
            self._values[key] = self._make(key)
        return self._values[key]

    def _make(self, key: str) -> str:
        rng = self._rng
        if key == "vendor":
            return self._vendor
        if key in self._cents:
            return self._shape.replace("#", self._number(self._cents[key]))
        if key.startswith("n_"):
            return self._number(self._cents[key[2:]])
        if key == "amount":
            return f"{self._cents['total'] // 100}.{self._cents['total'] % 100:02d}"
        if key in _DAYS:
            first, last = _DAYS[key]
            day = self._date + datetime.timedelta(rng.randint(first, last))
            return self._say(day, rng.choice(_DAY_STYLES) if rng.random() < 0.05 else None)
        if key in ("cur", "iso"):
            return self._currency if key == "cur" else self._date.isoformat()
        if key == "slug":
            return re.sub(r"[^a-z0-9]", "", self._vendor.lower()) or "office"
        kind = key.rstrip("0123456789")
        if kind == "customer":
            kind = rng.choice(("person", "company"))
        if kind == "person":
            return self._writer.person()
        if kind == "company":
            return self._writer.vendor()
        if kind in _NAMES:
            return rng.choice(_NAMES[kind])
        signs = {"#": "0123456789", "@": "ABCDEFGHKLMNPRSTX"}
        code: str = rng.choice(_LAYOUTS["codes"][kind])
        return re.sub(r"[#@]", lambda hit: rng.choice(signs[hit[0]]), code)

    def _number(self, cents: int) -> str:
        units = f"{cents // 100:,}".replace(",", self._group)
        if self._whole and cents % 100 == 0 and (cents < 100_000 or self._group in ("", ",")):
            return units
        return f"{units}{self._point}{cents % 100:02d}"

    def _say(self, day: datetime.date, style: str | None) -> str:
        style = style or self._day_style
        if style == "{d:02}/{m:02}/{y}" and (day.day <= 12 or self._currency == "USD"):
            style = "{d} {month} {y}"
        month = _NAMES["months"][day.month - 1]
        ending = {1: "st", 2: "nd", 3: "rd"}.get(0 if 11 <= day.day <= 13 else day.day % 10, "th")
        return style.format(
            d=day.day,
            m=day.month,
            y=day.year,
            month=month,
            mon=month[:3],
            th=ending,
            week=_NAMES["weekdays"][day.weekday()],
        )


def _sums(rng: random.Random, total: int) -> dict[str, int]:
    """Return the amounts around a total, in cents; those that belong together add up."""
    rate = rng.choice((5, 7, 8, 10, 19, 20, 21, 23, 25))
    net = round(total * 100 / (100 + rate))
    price, part = (int(whole * rng.uniform(0.2, 0.8)) for whole in (total, net))
    small, extra = int(total * rng.uniform(0.03, 0.2)) + 1, int(total * rng.uniform(0.1, 0.9)) + 1
    cash = -(-total // 1000) * 1000
    return {
        "total": total,
        "net": net,
        "vat": total - net,
        "price1": price,
        "price2": total - price,
        "part1": part,
        "part2": net - part,
        "small": small,
        "goods": total - small,
        "before": total + small,
        "extra": extra,
        "gross": total + extra,
        "cash": cash,
        "change": cash - total,
    }
