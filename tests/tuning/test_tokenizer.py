"""The tokenizer keeps every text, and makes a name of the same tokens wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from server.errors import ConfigError
from server.tuning.tokenizer import (
    CONTROL_TOKENS,
    letter_ids,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

TEXTS = ['Acme Bakery has sent 12.50 euros, "Acme" says. {"vendor":"Acme Bakery"}'] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Return a small tokenizer that takes control tokens for plain text."""
    made = train_tokenizer(TEXTS, 400)
    made.encode_special_tokens = True
    return made


@pytest.mark.parametrize(
    "text",
    ["Héllo  wörld\n\n", "发票 １２", "😀\t<end_of_turn> <bos>", " leading", '{"a":"b","c":1}', ""],
)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_a_name_is_made_of_the_same_tokens_everywhere(tokenizer: Tokenizer) -> None:
    name = tokenizer.encode("Zorbel Ltd", add_special_tokens=False).ids
    for text in ('"Zorbel Ltd"', "from Zorbel Ltd.", "\nZorbel Ltd\n", "1 Zorbel Ltd,"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert any(ids[i : i + len(name)] == name for i in range(len(ids))), text


def test_control_tokens_come_first_and_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(i) for i in range(len(CONTROL_TOKENS))] == list(CONTROL_TOKENS)
    assert len(tokenizer.encode("2025", add_special_tokens=False).ids) == 4


def test_saved_and_loaded_it_reads_control_tokens_as_text(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path, 64)
    loaded = load_tokenizer(tmp_path)
    ids = loaded.encode("<end_of_turn>", add_special_tokens=False).ids
    assert loaded.token_to_id("<end_of_turn>") not in ids


def test_a_directory_without_one_is_a_readable_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json: not there"):
        load_tokenizer(tmp_path)


def test_labels_get_letters_of_their_own(tokenizer: Tokenizer) -> None:
    ids = letter_ids(tokenizer, [f"label {i}" for i in range(52)])
    assert len(set(ids.values())) == 52
    with pytest.raises(ConfigError, match="53 are more"):
        letter_ids(tokenizer, [f"label {i}" for i in range(53)])
