"""What a completion means, by the kind of the specialist that wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidOutput, WorkerError
from server.specialist import SpecialistCard
from server.tasks.answer import Extractor, Reader, TokenClassifier, reader, sample
from server.types import (
    Choose,
    Classified,
    Completion,
    Extracted,
    FinishReason,
    Generated,
    Sample,
    ScoreTokens,
    Step,
    Tagged,
)
from tests.strategies import logprobs
from tests.tiny_fleet import COLOURS, INVOICE_SCHEMA, card, cards, labels
from tests.tiny_model import LABEL_IDS

NONE_ID = LABEL_IDS[5]


def reader_of(content: dict[str, Any], pieces: Sequence[str] = ()) -> Reader:
    """Return the reader of a card; token ids count `pieces`."""
    return reader(
        SpecialistCard.model_validate(content), lambda ids: "".join(pieces[one] for one in ids)
    )


def completion(
    text: str = "", steps: tuple[Step, ...] = (), finish_reason: FinishReason = "stop"
) -> Completion:
    """Return what an engine gave."""
    return Completion(text, finish_reason, prompt_tokens=9, completion_tokens=7, steps=steps)


def scored(*values: float, ids: Sequence[int] = LABEL_IDS) -> Completion:
    """Return a completion whose first step reports `values` for the first of `ids`."""
    reported = dict(zip(ids, values, strict=False))
    return completion(steps=(Step(ids[0], reported),))


def colour(reported: Completion, **more: Any) -> Classified:
    """Return what the colour task makes of a completion."""
    output = reader_of({**cards()["colour"], **more}).read(reported)
    assert isinstance(output, Classified)
    return output


def test_a_classifier_asks_for_exactly_its_labels_tokens() -> None:
    assert reader_of(cards()["colour"]).decoding == ScoreTokens(LABEL_IDS[:3])


@given(st.lists(logprobs, min_size=3, max_size=3))
def test_scores_cover_every_label_sum_to_one_and_name_the_best(values: list[float]) -> None:
    output = colour(scored(*values))
    assert tuple(output.scores) == COLOURS
    assert math.fsum(output.scores.values()) == pytest.approx(1, abs=1e-9)
    assert output.confidence == output.scores[output.label] == max(output.scores.values())
    assert values[COLOURS.index(output.label)] == pytest.approx(max(values), abs=1e-9)


def test_a_classifiers_temperature_is_its_cards() -> None:
    reported = scored(math.log(0.8), math.log(0.1), math.log(0.1))
    assert colour(reported, calibration={}).confidence == pytest.approx(0.8)
    cooled = colour(reported, calibration={"temperature": 2.0}).confidence
    assert cooled == pytest.approx(math.sqrt(0.8) / (math.sqrt(0.8) + 2 * math.sqrt(0.1)))


def test_labels_that_the_token_ids_order_otherwise_keep_their_own_scores() -> None:
    turned = [{"label": "red", "token_id": 8}, {"label": "blue", "token_id": 6}]
    output = colour(scored(math.log(0.9), math.log(0.1), ids=(6, 8)), labels=turned)
    assert output.label == "blue"


@pytest.mark.parametrize("steps", [(), (Step(6, {6: -0.1, 7: -2.0}),)])
def test_a_label_that_the_engine_left_out_is_the_engines_error(steps: tuple[Step, ...]) -> None:
    with pytest.raises(WorkerError, match="every label"):
        TokenClassifier(SpecialistCard.model_validate(cards()["colour"])).read(
            completion(steps=steps)
        )


def test_a_tagger_asks_for_its_labels_and_for_none_of_them() -> None:
    assert reader_of(cards()["topics"]).decoding == ScoreTokens((*LABEL_IDS[:2], NONE_ID))


@given(logprobs, logprobs, logprobs)
def test_a_tag_applies_from_its_threshold_on_whatever_the_others_do(
    art: float, sport: float, none: float
) -> None:
    reported = {LABEL_IDS[0]: art, LABEL_IDS[1]: sport, NONE_ID: none}
    tagger = reader_of(cards()["topics"])
    output = tagger.read(completion(steps=(Step(NONE_ID, reported),)))
    assert isinstance(output, Tagged)
    assert output.scores["art"] == pytest.approx(1 / (1 + math.exp(min(none - art, 700))))
    assert output.labels == tuple(name for name in ("art", "sport") if output.scores[name] >= 0.5)
    alone = {**reported, LABEL_IDS[1]: -50.0}
    other = tagger.read(completion(steps=(Step(NONE_ID, alone),)))
    assert isinstance(other, Tagged)
    assert other.scores["art"] == output.scores["art"]


def test_a_tag_has_a_threshold_of_its_own() -> None:
    eager, strict = labels("art", "sport")
    content = {
        **cards()["topics"],
        "labels": [{**eager, "threshold": 0.2}, {**strict, "threshold": 0.9}],
    }
    even = {LABEL_IDS[0]: -1.0, LABEL_IDS[1]: -1.0, NONE_ID: -1.0}
    output = reader_of(content).read(completion(steps=(Step(NONE_ID, even),)))
    assert isinstance(output, Tagged)
    assert output.labels == ("art",)


def spoken(*words: str) -> dict[str, Any]:
    """Return a card whose labels are said by these words, and named after them in capitals."""
    return card(
        "spoken",
        "classify",
        labels=[{"label": word.strip().upper(), "words": word} for word in words],
        sampling={"max_tokens": 6},
    )


def test_a_word_classifier_asks_for_its_words_under_a_mask() -> None:
    assert reader_of(spoken(" yes", " no")).decoding == Choose((" yes", " no"), 6)


@pytest.mark.parametrize("blank", ["", " "])
def test_a_word_classifier_scores_the_labels_that_its_words_stand_for(blank: str) -> None:
    step = Step(0, {0: math.log(0.75), 1: math.log(0.25)})
    output = reader_of(spoken(f"{blank}yes", f"{blank}no"), (f"{blank}yes", f"{blank}no")).read(
        completion(f"{blank}yes", (step,))
    )
    assert isinstance(output, Classified)
    assert output.label == "YES"
    assert output.scores == pytest.approx({"YES": 0.75, "NO": 0.25})


def test_a_token_that_is_one_blank_tells_two_labels_apart() -> None:
    steps = (
        Step(0, {0: math.log(0.9), 3: math.log(0.1)}),
        Step(1, {1: math.log(2 / 3), 2: math.log(1 / 3)}),
    )
    output = reader_of(spoken("new york", "newark", "bath"), ("new", "ark", " ", "bath")).read(
        completion("newark", steps)
    )
    assert isinstance(output, Classified)
    assert output.scores == pytest.approx({"NEW YORK": 0.3, "NEWARK": 0.6, "BATH": 0.1})


def test_words_that_are_no_labels_are_an_invalid_output() -> None:
    with pytest.raises(InvalidOutput, match="none of its labels"):
        reader_of(spoken("yes", "no"), ("perhaps",)).read(completion("perhaps", (Step(0, {}),)))


def test_an_extractor_answers_with_data_valid_under_its_schema() -> None:
    data = {"vendor": "Miller", "currency": "EUR"}
    assert reader_of(cards()["invoice"]).read(completion(json.dumps(data))) == Extracted(data)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ('{"vendor": "Miller"', "no JSON"),
        ('{"vendor": NaN, "currency": "EUR"}', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "at the whole"),
        ('{"vendor": "Miller"}', "required"),
        ('{"vendor": "Miller", "currency": "GBP"}', r"\['currency'\] \(enum\)"),
        ('{"vendor": "", "currency": "EUR"}', r"\['vendor'\] \(minLength\)"),
    ],
)
def test_what_breaks_the_schema_is_an_invalid_output(text: str, why: str) -> None:
    with pytest.raises(InvalidOutput, match=why) as caught:
        reader_of(cards()["invoice"]).read(completion(text))
    assert "Miller" not in caught.value.message, "what a caller sent, or is told, is not logged"


def test_json_that_did_not_end_in_time_is_an_invalid_output_even_if_it_parses() -> None:
    text = json.dumps({"vendor": "Miller", "currency": "EUR"})
    with pytest.raises(InvalidOutput, match="within 7 tokens"):
        reader_of(cards()["invoice"]).read(completion(text, finish_reason="length"))


def test_a_second_attempt_at_json_differs_from_the_first_and_repeats_itself() -> None:
    extractor = Extractor(SpecialistCard.model_validate(cards()["invoice"]))
    first, second = extractor.decoding, extractor.second_decoding
    assert first.temperature == 0
    assert second.temperature > 0
    assert second.seed is not None
    assert (first.schema, first.max_tokens) == (second.schema, second.max_tokens)
    assert first.schema == INVOICE_SCHEMA


@pytest.mark.parametrize("task", ["colour", "spoken", "topics", "story"])
def test_only_an_extractor_has_a_second_attempt(task: str) -> None:
    assert reader_of(cards()[task]).second_decoding is None


@given(st.text(), st.sampled_from(["stop", "length"]))
def test_a_writers_text_is_handed_on_as_it_is(text: str, reason: FinishReason) -> None:
    read = reader_of(cards()["story"]).read(completion(text, finish_reason=reason))
    assert read == Generated(text, reason)


def test_sampling_is_what_the_card_says() -> None:
    sampling = {
        "max_tokens": 5,
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 7,
        "repetition_penalty": 1.2,
    }
    story = SpecialistCard.model_validate({**cards()["story"], "sampling": sampling})
    assert sample(story) == Sample(5, 0.3, 0.8, 7, 1.2)
