"""The generators of invoices and bedtime stories keep what they promise."""

from __future__ import annotations

import json
import tomllib
from itertools import islice
from pathlib import Path
from typing import Literal

import pytest
from jsonschema import Draft202012Validator

from server.demo import bedtime_story, invoice
from server.types import Example

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PORTIONS: tuple[tuple[Split, int], ...] = (("train", 3000), ("test", 1000))
STRANGERS = Path(__file__).parent / "strangers_invoice.toml"


def booked(row: Example) -> dict[str, str | float]:
    """Return what the row's output says."""
    data: dict[str, str | float] = json.loads(str(row.output))
    return data


@pytest.mark.parametrize("split", SPLITS)
def test_generators_are_deterministic_and_distinct(split: Split) -> None:
    for rows in (invoice.rows, bedtime_story.rows):
        first = list(rows(split, 300, 7))
        assert first == list(rows(split, 300, 7))
        assert first != list(rows(split, 300, 8))
        assert len({(str(row.input), row.output) for row in first}) == 300


def test_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    assert list(invoice.rows("train", 20, 1)) == list(islice(invoice.rows("train", 50, 1), 20))


@pytest.mark.parametrize("split", SPLITS)
def test_invoices_hold_what_is_booked(split: Split) -> None:
    validator = Draft202012Validator(invoice.SCHEMA)
    for row in invoice.rows(split, 700, 3):
        data = booked(row)
        validator.validate(data)
        assert isinstance(row.input, str)
        assert str(data["vendor"]) in row.input
        assert str(data["date"])[:4] in row.input
        assert 5 <= len(row.input.split()) <= 110
        assert row.output == (
            f'{{"vendor":"{data["vendor"]}","date":"{data["date"]}",'
            f'"amount":{data["amount"]:.2f},"currency":"{data["currency"]}"}}'
        )
        assert not set("{}~[]") & set(row.input)


def test_vendors_layouts_and_words_of_the_splits_are_apart() -> None:
    vendors = [{booked(row)["vendor"] for row in invoice.rows(s, 1000, 5)} for s in SPLITS]
    layouts = [set(invoice.layouts(split)) for split in SPLITS]
    words = [invoice.vendor_words(split) for split in SPLITS]
    for parts in (vendors, layouts, words):
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
    assert len(vendors[0]) > 950
    assert sum(map(len, layouts)) >= 80
    assert len(layouts[1]) >= 4
    assert len(layouts[2]) >= 7


def test_test_invoices_use_no_letter_that_training_lacks() -> None:
    train, test = (
        set("".join(str(row.input).lower() for row in invoice.rows(split, count, 2)))
        for split, count in PORTIONS
    )
    assert test <= train


def test_every_currency_occurs() -> None:
    found = {booked(row)["currency"] for row in invoice.rows("train", 400, 9)}
    assert found == set(invoice.CURRENCIES)


def test_documents_are_texts_of_the_train_split() -> None:
    texts = list(invoice.documents(400, 1))
    assert texts == list(invoice.documents(400, 1))
    assert all(text.strip() == text and "{" not in text for text in texts)
    strangers = [{booked(row)["vendor"] for row in invoice.rows("test", 400, 1)}]
    assert not any(f"{vendor}\n" in text for vendor in strangers[0] for text in texts)
    assert len(set(bedtime_story.documents(100, 1))) == 100


def test_strangers_are_sound() -> None:
    papers = tomllib.loads(STRANGERS.read_text("utf-8"))["paper"]
    validator = Draft202012Validator(invoice.SCHEMA)
    assert len(papers) >= 25
    for paper in papers:
        text = paper.pop("text")
        validator.validate(paper)
        assert paper["vendor"] in text


@pytest.mark.parametrize("split", SPLITS)
def test_stories_use_what_was_ordered(split: Split) -> None:
    validator = Draft202012Validator(bedtime_story.INPUT_SCHEMA)
    for row in bedtime_story.rows(split, 700, 3):
        assert not isinstance(row.input, str)
        assert isinstance(row.output, str)
        validator.validate(dict(row.input))
        assert row.input["hero"] in row.output
        assert row.input["place"] in row.output.replace("The ", "the ").replace("A ", "a ")
        assert row.output.endswith(f"{row.input['lesson']}.")
        assert bedtime_story.MIN_WORDS <= len(row.output.split()) <= bedtime_story.MAX_WORDS
        assert not set("{}[]|") & set(row.output)


def test_combinations_of_the_splits_are_apart() -> None:
    parts = [set(bedtime_story.combinations(split)) for split in SPLITS]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    for split, part in zip(SPLITS, parts, strict=True):
        for row in bedtime_story.rows(split, 200, 1):
            assert not isinstance(row.input, str)
            assert tuple(row.input[field] for field in bedtime_story.FIELDS) in part


def test_things_to_try_are_inputs() -> None:
    validator = Draft202012Validator(bedtime_story.INPUT_SCHEMA)
    for order in bedtime_story.TRY:
        validator.validate(order)
    assert all(isinstance(text, str) and text for text in invoice.TRY)
