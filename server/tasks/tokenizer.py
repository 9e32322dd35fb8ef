"""The tokenizers of the fleet: each file read once, whichever variants share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from tokenizers import Tokenizer

from server.errors import ConfigError
from server.fleet import Fleet, Variant
from server.prompt import plain_text_tokenizer

FromHub: TypeAlias = Callable[[str, str | None], Path]
"""Finds a `tokenizer.json` by model id and revision, or raises ConfigError."""


class TaskTokenizer:
    """A tokenizer for callers' text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.longest_piece = max((len(piece) for piece in tokenizer.get_vocab()), default=1)
        """Characters: no token stands for more text than this."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, control tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class TokenizerShelf:
    """Finds each variant's tokenizer: beside its card, beside its model, or on the hub."""

    def __init__(self, fleet: Fleet, from_hub: FromHub) -> None:
        self._fleet = fleet
        self._from_hub = from_hub
        self._read: dict[Path, TaskTokenizer] = {}
        # A hub that cannot be reached takes half a minute to say so: ask once a worker.
        self._hub: dict[str, Path | ConfigError] = {}

    def of(self, variant: Variant) -> TaskTokenizer:
        """Return the tokenizer that a variant's prompts are made with.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        file = self._fleet.tokenizer_file(variant) or self._downloaded(variant.worker)
        if file not in self._read:
            try:
                tokenizer = plain_text_tokenizer(file.read_text())
            except Exception as error:  # noqa: BLE001 - all that `tokenizers` raises is Exception
                raise ConfigError([f"{file}: no tokenizer: {error}"]) from None
            self._read[file] = TaskTokenizer(tokenizer)
        return self._read[file]

    def _downloaded(self, name: str) -> Path:
        if name not in self._hub:
            worker = self._fleet.workers[name]
            try:
                self._hub[name] = self._from_hub(worker.model, worker.config.revision)
            except ConfigError as error:
                self._hub[name] = ConfigError(
                    [f"workers.{name}.model: {fault}" for fault in error.faults]
                )
        found = self._hub[name]
        if isinstance(found, ConfigError):
            raise found
        return found
