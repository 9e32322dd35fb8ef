"""The ticket task: which queue an e-mail to a company's support belongs to."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import replace

from server.demo.frames import Book, Split, Writer, labelled
from server.demo.noise import noisy
from server.demo.told import splits
from server.types import Example

DESCRIPTION = "Which queue a support e-mail belongs to."

LABELS: dict[str, str] = {
    "billing": "An invoice, charge, price on a bill or means of payment; no money asked back.",
    "refund": "The writer wants money back, returns goods, or waits for a promised refund.",
    "delivery": "An order is on its way, late, lost, damaged, incomplete or the wrong one.",
    "login": "The writer cannot sign in: password, code, locked or hijacked account.",
    "bug": "Something in the app or on the website is broken, slow or shows an error.",
    "cancellation": "The writer wants to end a subscription, contract, order or account.",
    "feature-request": "The writer wishes for something that the product cannot do yet.",
    "account-change": "Details of a living account: name, address, e-mail, users, language.",
    "sales": "The writer may buy: prices, quotes, demos, upgrades, more seats, stock.",
    "other": "Thanks, greetings, spam, applications, newsletters and whatever else comes.",
}

TRY: tuple[str, ...] = (
    "Hi, the amount on my May invoice isn't what we agreed on. Can somebody check it?",
    "my boots left the warehouse ten days ago and nobody knows where they are",
    "As soon as I add a picture, the whole report turns grey and I have to start again.",
    "There will soon be fifty of us. What would that cost per month?",
    "I'm not called Mrs Smith any more, could you put my new surname into your records?",
)

OPEN_SLOTS = ("name", "surname", "company", "city", "item", "street", "number", "language")


@functools.cache
def book() -> Book:
    """The frames and words of the ticket task, read once."""
    written = Book.load("ticket_words", "ticket_frames", "ticket_more", open_slots=OPEN_SLOTS)
    return replace(written, splits=splits(written.frames, frozenset(LABELS)))


def rows(split: Split, count: int, seed: int) -> Iterator[Example]:
    """`count` labelled e-mails of a split, balanced over the labels, the same for a seed."""
    rng = random.Random(f"ticket {split} {seed}")
    return labelled(tuple(LABELS), lambda label, rng: _mail(label, split, rng), count, rng)


def documents(count: int, seed: int) -> Iterator[str]:
    """`count` training e-mails as plain text, to learn the language from."""
    for example in rows("train", count, seed):
        yield str(example.input)


def _mail(label: str, split: Split, rng: random.Random) -> str:
    material = book()
    writer = Writer(material, split, rng, steady=("item", "number", "plan", "company", "city"))
    short = material.group(f"{label}.short", split)
    if rng.random() < (0.22 if label == "other" else 0.13) and short:
        text = writer.write(rng.choice(short))
        return noisy(text.lower() if rng.random() < 0.5 else text, rng)
    body = [rng.choice(material.group(label, split))]
    more = material.group(f"{label}.more", split)
    if more and rng.random() < 0.38:
        body.append(rng.choice(more))
    if rng.random() < 0.16:
        body.append(rng.choice(material.group(label, split)))
        rng.shuffle(body)
    # What surrounds the matter tells nothing, and is the same in every split.
    filler = material.group("filler", "train")
    if filler and label != "other" and rng.random() < 0.3:
        body.insert(rng.randrange(len(body) + 1), rng.choice(filler))
    opener = material.group("opener", "train")
    if opener and rng.random() < (0.05 if label == "other" else 0.12):
        body.insert(0, rng.choice(opener))
    text = " ".join(writer.write(frame) for frame in dict.fromkeys(body))
    if rng.random() < 0.35:
        end = rng.choice(("{hello}, ", "{hello}, ", "{hello}! ", "{hello}. "))
        text = writer.write(end) + " " + text
    if rng.random() < 0.28:
        text += " " + writer.write(
            rng.choice(("{bye}", "{bye}, {name}", "{bye}, {name} {surname}"))
        )
    subjects = material.group(f"{label}.subject", split)
    if subjects and rng.random() < 0.1:
        text = f"Subject: {writer.write(rng.choice(subjects))}. {text}"
    return noisy(text, rng)
