"""Scores: probabilities, in the engine's order, and exact wherever exactness is promised."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tasks.calibration import by_label, choice_logprobs, sigmoid_against, softmax
from server.types import Step
from tests.strategies import WordModel, logprobs, temperatures, word_models

many_logprobs = st.lists(st.one_of(logprobs, st.just(-math.inf)), min_size=1, max_size=12)


@given(many_logprobs, temperatures)
def test_softmax_sums_to_one(values: list[float], temperature: float) -> None:
    probabilities = softmax(values, temperature)
    assert math.fsum(probabilities) == pytest.approx(1, abs=1e-12)
    assert all(0 <= one <= 1 for one in probabilities)


@given(many_logprobs, temperatures)
def test_softmax_never_turns_two_values_around(values: list[float], temperature: float) -> None:
    pairs = sorted(zip(values, softmax(values, temperature), strict=True))
    probabilities = [probability for _, probability in pairs]
    assert probabilities == sorted(probabilities)


@given(st.lists(logprobs, min_size=1, max_size=12))
def test_softmax_leaves_normalised_logprobs_alone_at_temperature_one(values: list[float]) -> None:
    total = math.fsum(map(math.exp, values))
    normalised = [value - math.log(total) for value in values]
    assert softmax(normalised, 1.0) == pytest.approx([math.exp(one) for one in normalised])


@given(st.lists(logprobs, min_size=2, max_size=6), st.floats(-50, 50), temperatures)
def test_softmax_ignores_a_constant_added_to_every_logit(
    values: list[float], constant: float, temperature: float
) -> None:
    moved = [value + constant for value in values]
    assert softmax(moved, temperature) == pytest.approx(softmax(values, temperature), abs=1e-9)


def test_a_hotter_softmax_is_less_sure() -> None:
    confidences = [max(softmax([-0.1, -2.5, -4.0], one)) for one in (0.5, 1.0, 2.0, 8.0)]
    assert confidences == sorted(confidences, reverse=True)
    assert len(set(confidences)) == 4


def test_softmax_gives_a_forbidden_token_nothing() -> None:
    assert softmax([0.0, -math.inf], 2.0) == [1.0, 0.0]


@given(logprobs, logprobs, temperatures)
def test_sigmoid_is_the_softmax_of_a_label_against_none(
    label: float, none: float, temperature: float
) -> None:
    expected = softmax([label, none], temperature)[0]
    assert sigmoid_against(label, none, temperature) == pytest.approx(expected, abs=1e-12)


@given(
    st.one_of(logprobs, st.just(-math.inf)), st.one_of(logprobs, st.just(-math.inf)), temperatures
)
def test_sigmoids_of_both_sides_sum_to_one(one: float, other: float, temperature: float) -> None:
    total = sigmoid_against(one, other, temperature) + sigmoid_against(other, one, temperature)
    assert total == pytest.approx(1, abs=1e-12)


@given(word_models(), st.one_of(st.none(), st.integers(1, 4)))
def test_choices_never_have_more_than_all_of_the_probability(
    model: WordModel, top: int | None
) -> None:
    found = choice_logprobs(model.choices, model.greedy_steps(top), model.decode)
    assert math.fsum(map(math.exp, found)) <= 1 + 1e-9


@given(word_models())
def test_choices_share_the_whole_probability_when_every_token_is_in_view(model: WordModel) -> None:
    found = choice_logprobs(model.choices, model.greedy_steps(), model.decode)
    assert math.fsum(map(math.exp, found)) == pytest.approx(1, abs=1e-9)


@given(word_models())
def test_a_choice_told_apart_by_every_token_that_begins_it_is_exact(model: WordModel) -> None:
    steps = model.greedy_steps()
    found = choice_logprobs(model.choices, steps, model.decode)
    for choice, logprob in zip(model.choices, found, strict=True):
        if _told_apart(model, steps, choice):
            assert math.exp(logprob) == pytest.approx(model.probability(choice), abs=1e-9)


@given(word_models())
def test_with_one_character_a_token_the_choice_generated_is_exact(model: WordModel) -> None:
    spelled = WordModel(model.choices, ("a", "b", "c", " "), model.seed)
    steps = spelled.greedy_steps()
    said = spelled.decode([step.token_id for step in steps])
    found = dict(
        zip(model.choices, choice_logprobs(model.choices, steps, spelled.decode), strict=True)
    )
    assert math.exp(found[said]) == pytest.approx(spelled.probability(said), abs=1e-9)


def _told_apart(model: WordModel, steps: tuple[Step, ...], choice: str) -> bool:
    """Return whether no branch not taken leads both to `choice` and to another choice."""
    said = ""
    for step in steps:
        for token_id in step.logprobs:
            branch = said + model.pieces[token_id]
            reached = [one for one in model.choices if one.startswith(branch)]
            if token_id != step.token_id and choice in reached and len(reached) > 1:
                return False
        said += model.pieces[step.token_id]
    return True


def test_choices_behind_a_branch_not_taken_share_its_mass() -> None:
    model = WordModel(("yes", "nay", "no"), ("yes", "n", "ay", "o"), 0)
    steps = (Step(0, {0: math.log(0.6), 1: math.log(0.4)}),)
    assert [math.exp(one) for one in choice_logprobs(model.choices, steps, model.decode)] == (
        pytest.approx([0.6, 0.2, 0.2])
    )


def test_a_choice_that_was_never_in_view_is_impossible() -> None:
    steps = (Step(0, {0: math.log(0.9)}),)
    found = choice_logprobs(("yes", "no"), steps, lambda ids: "yes" if ids else "")
    assert found == [pytest.approx(math.log(0.9)), -math.inf]


def test_a_token_that_ends_inside_a_character_still_tells_choices_apart() -> None:
    # "é" in two bytes: the first alone decodes to U+FFFD.
    pieces = {(): "", (0,): "n", (1,): "y", (0, 2): "n\ufffd", (0, 2, 3): "né", (0, 4): "no"}
    steps = (
        Step(0, {0: math.log(0.8), 1: math.log(0.2)}),
        Step(2, {2: math.log(0.75), 4: math.log(0.25)}),
        Step(3, {3: 0.0}),
    )
    found = choice_logprobs(("né", "no", "y"), steps, lambda ids: pieces[tuple(ids)])
    assert [math.exp(one) for one in found] == pytest.approx([0.6, 0.2, 0.2])


def test_a_branch_that_ends_inside_a_character_goes_to_every_choice_it_may_become() -> None:
    pieces = {(): "", (0,): "n", (1,): "k\ufffd", (0, 2): "n\ufffd", (0, 3): "no"}
    steps = (
        Step(0, {0: math.log(0.8), 1: math.log(0.2)}),
        Step(3, {3: math.log(0.75), 2: math.log(0.25)}),
    )
    found = choice_logprobs(("né", "no", "ké"), steps, lambda ids: pieces[tuple(ids)])
    assert [math.exp(one) for one in found] == pytest.approx([0.1, 0.7, 0.2])


def test_values_stand_under_their_labels_in_the_cards_order() -> None:
    assert list(by_label(["b", "a"], [0.1, 0.9]).items()) == [("b", 0.1), ("a", 0.9)]
