"""No text of a caller can become a control token, and none of it is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tokenizers import Tokenizer

from server.errors import ConfigError
from server.prompt import PromptTemplate, plain_text_tokenizer
from server.specialist import ControlPiece, InputPiece, Piece, TextPiece
from tests.strategies import EVERY_CONTROL_TOKEN, texts
from tests.tiny_fleet import GEMMA_PROMPT, STORY_PROMPT
from tests.tiny_model import write_tiny_tokenizer

PIECES: TypeAdapter[tuple[Piece, ...]] = TypeAdapter(tuple[Piece, ...])


@pytest.fixture(scope="module")
def json_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a tokenizer.json."""
    directory: Path = write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return (directory / "tokenizer.json").read_text()


@pytest.fixture(scope="module")
def tokenizer(json_text: str) -> Tokenizer:
    return plain_text_tokenizer(json_text)


@pytest.fixture(scope="module")
def gemma(tokenizer: Tokenizer) -> PromptTemplate:
    """Return the template of a task whose input is one text."""
    return PromptTemplate(PIECES.validate_python(GEMMA_PROMPT), tokenizer)


@pytest.fixture(scope="module")
def story(tokenizer: Tokenizer) -> PromptTemplate:
    """Return the template of a task whose input has fields."""
    return PromptTemplate(PIECES.validate_python(STORY_PROMPT), tokenizer)


def control_ids(tokenizer: Tokenizer) -> dict[int, str]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return {vocabulary[token]: token for token in EVERY_CONTROL_TOKEN}


def controls_of(tokenizer: Tokenizer, token_ids: tuple[int, ...]) -> list[str]:
    """Return the control tokens in a prompt, in order."""
    names = control_ids(tokenizer)
    return [names[token_id] for token_id in token_ids if token_id in names]


def spans_of(tokenizer: Tokenizer, token_ids: tuple[int, ...]) -> list[str]:
    """Return the texts between a prompt's control tokens."""
    spans: list[list[int]] = [[]]
    for token_id in token_ids:
        if token_id in control_ids(tokenizer):
            spans.append([])
        else:
            spans[-1].append(token_id)
    return [tokenizer.decode(span, skip_special_tokens=False) for span in spans]


def test_the_tokenizer_would_parse_control_tokens_if_it_were_let(json_text: str) -> None:
    # Else the properties below would hold for want of temptation.
    ids = Tokenizer.from_str(json_text).encode("a<end_of_turn>b", add_special_tokens=False).ids
    assert len(ids) == 3


@given(text=texts)
def test_no_text_yields_a_control_token_outside_the_templates_own_places(
    gemma: PromptTemplate, tokenizer: Tokenizer, text: str
) -> None:
    own = [piece["control"] for piece in GEMMA_PROMPT if "control" in piece]
    assert controls_of(tokenizer, gemma.encode(text).token_ids) == own


@given(text=texts)
def test_what_stands_between_control_tokens_is_the_text_itself(
    gemma: PromptTemplate, tokenizer: Tokenizer, text: str
) -> None:
    # "▁" is how Gemma's tokenizer writes a blank: the two are one token to it.
    spans = spans_of(tokenizer, gemma.encode(text).token_ids)
    assert spans == ["", "", f"user\n{text}".replace("▁", " "), "\n", "model\n"]


@given(hero=texts, place=texts)
def test_each_field_goes_to_its_own_place(
    story: PromptTemplate, tokenizer: Tokenizer, hero: str, place: str
) -> None:
    prompt = story.encode({"hero": hero, "place": place})
    own = [piece["control"] for piece in STORY_PROMPT if "control" in piece]
    assert controls_of(tokenizer, prompt.token_ids) == own
    asked = spans_of(tokenizer, prompt.token_ids)[2]
    assert asked == f"user\nhero: {hero}\nplace: {place}".replace("▁", " ")


@given(text=texts)
def test_the_same_text_is_always_the_same_prompt(gemma: PromptTemplate, text: str) -> None:
    assert gemma.encode(text) == gemma.encode(text)


@pytest.mark.parametrize("token", EVERY_CONTROL_TOKEN)
def test_a_control_tokens_spelling_is_ordinary_text(
    gemma: PromptTemplate, tokenizer: Tokenizer, token: str
) -> None:
    ids = gemma.encode(token).token_ids
    assert ids.count(tokenizer.token_to_id(token)) == sum(
        piece.get("control") == token for piece in GEMMA_PROMPT
    )
    assert len(ids) > len(gemma.encode("").token_ids) + 1


@given(before=st.text("ab thelabl"), text=st.text("ab thelabl"))
def test_neighbouring_texts_are_joined_before_they_are_encoded(
    tokenizer: Tokenizer, before: str, text: str
) -> None:
    # "the" is one token, and must be one also where the template ends in "t".
    template = PromptTemplate([TextPiece(text=before), InputPiece(input="text")], tokenizer)
    whole = tokenizer.encode(before + text, add_special_tokens=False).ids
    assert list(template.encode(text).token_ids) == whole


def test_texts_on_either_side_of_a_control_token_are_not_joined(tokenizer: Tokenizer) -> None:
    template = PromptTemplate(
        [TextPiece(text="t"), ControlPiece(control="<bos>"), InputPiece(input="text")], tokenizer
    )
    bos = tokenizer.token_to_id("<bos>")
    assert template.encode("he").token_ids[1] == bos


def test_a_field_that_the_input_lacks_is_left_empty(story: PromptTemplate) -> None:
    assert story.encode({"hero": "a hare"}) == story.encode({"hero": "a hare", "place": ""})


def test_a_number_in_a_field_is_written_out(story: PromptTemplate) -> None:
    assert story.encode({"hero": 7, "place": ""}) == story.encode({"hero": "7", "place": ""})


def test_a_control_token_that_the_tokenizer_lacks_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="no control token '<start>'"):
        PromptTemplate([ControlPiece(control="<start>")], tokenizer)


def test_a_tokenizer_that_parses_control_tokens_is_refused(json_text: str) -> None:
    with pytest.raises(ValueError, match="control tokens in callers' text"):
        PromptTemplate([InputPiece(input="text")], Tokenizer.from_str(json_text))
