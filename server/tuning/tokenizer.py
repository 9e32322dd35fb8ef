"""A small byte-level BPE tokenizer with Gemma's control tokens, learned from text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from server.errors import ConfigError

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
UNUSED = tuple(f"<unused{i}>" for i in range(32))
CONTROL_TOKENS = (PAD, EOS, BOS, UNK, START_OF_TURN, END_OF_TURN, *UNUSED)

_WORDS = Regex(
    r""""?[{,]"\p{Ll}+":"?"""  # a key of compact JSON, with the marks around it
    r"""|[{}\[\],:"]{2,}"""  # JSON's other joints
    r"""| ?\p{N}"""  # digits, one by one
    r"""| ?\p{Ll}+(?: (?=\p{Lu}))?"""
    r"""|\p{L}+"""
    r"""|\s\s+"""
    r"""| ?[.,:;!?&)](?: (?=\p{Lu}))?"""
    r"""| ?[^\s\p{L}\p{N}]"""
    r"""|\s"""
)
"""How text falls into words, so that a copied name is made of the same tokens.

A space goes with the lower-case word, digit or sign beside it, never with a capitalised word:
"Acme" is one sequence of tokens after a space, a quote or a line break alike, which is what makes
copying learnable for a tiny model.
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` entries, control tokens and all bytes included."""
    tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_positions: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` as transformers and vLLM read them."""
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "pad_token": PAD,
        "eos_token": EOS,
        "bos_token": BOS,
        "unk_token": UNK,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (directory / "tokenizer_config.json").write_text(text)


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint, set to treat callers' control tokens as plain text.

    Raises:
        ConfigError: the directory has no `tokenizer.json`.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ConfigError([f"{path}: not there; a base model brings its tokenizer"])
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def control_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a control token.

    Raises:
        ConfigError: the tokenizer does not have it.
    """
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        raise ConfigError([f"tokenizer.json: no control token {token!r}"])
    return token_id


def letter_ids(tokenizer: Tokenizer, labels: Iterable[str]) -> dict[str, int]:
    """Give each label a letter of its own and return the letters' token ids.

    Letters are ordinary tokens that every byte-level vocabulary has, and that training has
    pulled apart: an adapter on linear layers cannot move embeddings, so it needs such.

    Raises:
        ConfigError: there are more labels than letters.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    names = list(labels)
    if len(names) > len(letters):
        raise ConfigError([f"labels: {len(names)} are more than the {len(letters)} letters"])
    return {
        name: control_id(tokenizer, letter) for name, letter in zip(names, letters, strict=False)
    }
