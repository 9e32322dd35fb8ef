"""The noise of real typing: no capitals, short forms, slips of the finger, spelling."""

from __future__ import annotations

import random
from collections.abc import Sequence

_SHORT_FORMS = (
    ("is not", "isn't"), ("was not", "wasn't"), ("are not", "aren't"), ("were not", "weren't"),
    ("do not", "don't"), ("does not", "doesn't"), ("did not", "didn't"), ("cannot", "can't"),
    ("could not", "couldn't"), ("would not", "wouldn't"), ("will not", "won't"),
    ("have not", "haven't"), ("has not", "hasn't"), ("I am", "I'm"), ("I have", "I've"),
    ("it is", "it's"), ("It is", "It's"), ("I would", "I'd"), ("we are", "we're"),
)  # fmt: skip
_TYPING = (("you", "u"), ("please", "pls"), ("because", "cuz"), ("and", "&"), ("are", "r"))
_SPELLED = (
    ("received", "recieved"), ("definitely", "definately"), ("really", "realy"),
    ("disappointed", "dissapointed"), ("because", "becuase"), ("account", "acount"),
    ("address", "adress"), ("delivery", "delivary"), ("password", "pasword"), ("the", "teh"),
    ("terrible", "terible"), ("recommend", "reccomend"), ("beautiful", "beatiful"),
    ("immediately", "immediatly"), ("subscription", "subsription"), ("cancel", "cancle"),
    ("invoice", "invioce"), ("refund", "refund"), ("friend", "freind"), ("quality", "qualty"),
    ("experience", "experiance"), ("restaurant", "restaraunt"), ("restaurant", "resturant"),
    ("separate", "seperate"), ("which", "wich"), ("their", "thier"), ("its", "it's"),
    ("believe", "beleive"), ("until", "untill"), ("happened", "happend"), ("wrong", "worng"),
    ("great", "graet"), ("awful", "awfull"), ("amazing", "amazng"), ("have", "hav"),
    ("too", "to"), ("customer", "costumer"), ("service", "servise"), ("charged", "chargd"),
    ("email", "e-mail"), ("e-mail", "email"), ("login", "log in"), ("tomorrow", "tommorow"),
)  # fmt: skip


def noisy(text: str, rng: random.Random) -> str:
    """The text as somebody may have typed it: often as it is, else without care."""
    if rng.random() < 0.5:
        text = _contract(text, rng)
    if rng.random() < 0.45:
        return text
    if rng.random() < 0.45:
        text = text.lower()
    elif rng.random() < 0.02:
        text = text.upper()
    if rng.random() < 0.30:
        text = text.replace("'", "")
    if rng.random() < 0.30:
        text = text.rstrip(".")
    if rng.random() < 0.12:
        text = text.replace(",", "")
    if rng.random() < 0.06:
        text = text.replace(". ", " ").rstrip(".")
    if rng.random() < 0.12:
        text = text.rstrip(".!") + "!" * rng.choice((1, 1, 2, 3)) if text[-1:] in ".!" else text
    if rng.random() < 0.05:
        text = text.replace(". ", "... ")
    if rng.random() < 0.12:
        text = _replaced(text, rng, _TYPING, 2)
    if rng.random() < 0.25:
        text = _replaced(text, rng, _SPELLED, 2)
    if rng.random() < 0.22:
        text = _slip(text, rng)
    return text


def _contract(text: str, rng: random.Random) -> str:
    for long, short in _SHORT_FORMS:
        if rng.random() < 0.5:
            text = text.replace(long + " ", short + " ")
        else:
            text = text.replace(short + " ", long + " ")
    return text


def _replaced(text: str, rng: random.Random, pairs: Sequence[tuple[str, str]], most: int) -> str:
    words = text.split(" ")
    found = [(at, short) for at, word in enumerate(words) for long, short in pairs if word == long]
    for at, short in rng.sample(found, min(most, len(found))):
        words[at] = short
    return " ".join(words)


def _slip(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    long = [at for at, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    for at in rng.sample(long, min(len(long), 1 + len(long) // 20)):
        word = words[at]
        cut = rng.randrange(1, len(word) - 2)
        kind = rng.random()
        if kind < 0.4:
            words[at] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
        elif kind < 0.75:
            words[at] = word[:cut] + word[cut + 1 :]
        else:
            words[at] = word[:cut] + word[cut] + word[cut:]
    return " ".join(words)
