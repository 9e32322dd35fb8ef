"""From a caller's input to token ids: one implementation, for training and for serving."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from tokenizers import Tokenizer

from server.errors import ConfigError
from server.specialist import ControlPiece, InputPiece, Piece, TextPiece
from server.types import Input, Prompt


class PromptTemplate:
    """A card's template over a tokenizer.

    Control tokens come from the template alone. Text, the caller's above all, is encoded with
    special tokens switched off, so `<end_of_turn>` in an input is thirteen ordinary characters.
    Neighbouring text pieces are joined before they are encoded, as they were when the checkpoint
    learned its template.
    """

    def __init__(self, pieces: Iterable[Piece], tokenizer: Tokenizer) -> None:
        """Bind `pieces` to a tokenizer whose `encode_special_tokens` is on.

        Raises:
            ConfigError: the tokenizer lacks a control token of the template.
        """
        if not tokenizer.encode_special_tokens:
            raise ValueError("this tokenizer would parse control tokens in callers' text")
        self._tokenizer = tokenizer
        self._spans: list[int | tuple[TextPiece | InputPiece, ...]] = []
        for is_control, run in groupby(pieces, lambda piece: isinstance(piece, ControlPiece)):
            if is_control:
                self._spans.extend(self._control_id(piece) for piece in run)
            else:
                self._spans.append(
                    tuple(piece for piece in run if not isinstance(piece, ControlPiece))
                )

    def encode(self, value: Input) -> Prompt:
        """Return the prompt for one input; a field that the input lacks is left empty."""
        ids: list[int] = []
        for span in self._spans:
            if isinstance(span, int):
                ids.append(span)
            else:
                text = "".join(_text_of(piece, value) for piece in span)
                ids.extend(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return Prompt(tuple(ids))

    def _control_id(self, piece: Piece) -> int:
        assert isinstance(piece, ControlPiece)
        token_id: int | None = self._tokenizer.token_to_id(piece.control)
        if token_id is None:
            raise ConfigError([f"prompt: the tokenizer has no control token {piece.control!r}"])
        return token_id


def plain_text_tokenizer(json_text: str) -> Tokenizer:
    """Return a tokenizer (from `tokenizer.json`'s text) that never parses control tokens."""
    tokenizer = Tokenizer.from_str(json_text)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _text_of(piece: TextPiece | InputPiece, value: Input) -> str:
    if isinstance(piece, TextPiece):
        return piece.text
    if isinstance(value, str):
        return value
    return str(value.get(piece.input, ""))
