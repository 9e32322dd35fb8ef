"""A specialist on disk: its card (`specialist.json`), verified and identified by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.errors import ConfigError

CARD_NAME = "specialist.json"

Kind = Literal["classify", "tag", "extract", "generate"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[^\x00]*$")]
TokenId = Annotated[int, Field(ge=0)]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BaseModelRef(_Closed):
    """The checkpoint that a specialist was made from."""

    name: str
    """A hub id, or the directory's name for a local base."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    sha256: Sha256 | None = None
    """Of the local base's `model.safetensors`; ties an adapter to the very weights."""


class ControlPiece(_Closed):
    """A control token of the template, written as the tokenizer knows it."""

    control: str


class TextPiece(_Closed):
    """Fixed text of the template, encoded as plain text."""

    text: str


class InputPiece(_Closed):
    """Where the caller's text goes: the whole input, or one field of an object."""

    input: str
    """`text` for a string input, else the field's name."""


Piece = ControlPiece | TextPiece | InputPiece


class Label(_Closed):
    """One answer of a `classify` or `tag` task and how the model says it."""

    label: str = Field(min_length=1, max_length=200)
    token_id: TokenId | None = None
    """The one token that stands for the label ..."""
    words: str | None = Field(default=None, min_length=1)
    """... or, for third-party fine-tunes, the text that the model writes."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """`tag` only: the score from which the label applies."""

    @model_validator(mode="after")
    def _said_one_way(self) -> Self:
        if (self.token_id is None) == (self.words is None):
            raise ValueError("give either `token_id` or `words`")
        return self


class Sampling(_Closed):
    """How `extract` and `generate` specialists decode."""

    max_tokens: int = Field(default=256, ge=1, le=8192)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0, le=2)


class Calibration(_Closed):
    """Temperature scaling (Guo et al. 2017): p = softmax(logits / temperature)."""

    method: Literal["none", "temperature"] = "none"
    temperature: float = Field(default=1.0, gt=0)
    ece_before: float | None = None
    ece_after: float | None = None


class DataRef(_Closed):
    """The rows that a quality figure was measured on."""

    name: str
    rows: int
    sha256: Sha256 | None = None


class Quality(_Closed):
    """Held-out figures; `baseline` holds the same ones for a simple model on the same rows."""

    metrics: dict[str, float]
    data: DataRef
    baseline: dict[str, float] = {}
    baseline_name: str | None = None


class Golden(_Closed):
    """An input, and the first-token log-probabilities that prove the specialist is loaded.

    The values are renormalised over the tokens listed before they are compared.
    """

    input: str | dict[str, Any]
    logprobs: dict[int, float] = Field(min_length=2)


class SpecialistCard(_Closed):
    """`specialist.json`: all that the gateway must know to ask a specialist properly."""

    format: Literal[1] = 1
    task: Name
    kind: Kind
    description: str = ""
    form: Literal["full", "adapter"]
    base_model: BaseModelRef
    prompt: tuple[Piece, ...] = Field(min_length=1)
    max_prompt_tokens: int = Field(ge=1)
    """The longest prompt, template included, that the specialist was made for."""
    input_schema: dict[str, Any] = {"type": "string", "minLength": 1}
    """JSON Schema of the caller's `input`."""
    examples: tuple[str | dict[str, Any], ...] = ()
    """Inputs that a person can try."""
    labels: tuple[Label, ...] = ()
    none_token_id: TokenId | None = None
    """`tag` only: score(label) = sigmoid(logit(label) - logit(none))."""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    sampling: Sampling = Sampling()
    calibration: Calibration = Calibration()
    quality: Quality | None = None
    golden: tuple[Golden, ...] = ()
    files: dict[FileName, Sha256] = {}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [label.label for label in self.labels]
        if self.kind in ("classify", "tag"):
            if len(self.labels) < (2 if self.kind == "classify" else 1):
                raise ValueError(f"a {self.kind} specialist needs `labels`")
            if len(set(names)) != len(names):
                raise ValueError(f"labels must be unique, and {_repeated(names)!r} is not")
            self._check_spoken_labels()
        elif self.labels:
            raise ValueError(f"`labels` mean nothing to a specialist of kind {self.kind!r}")
        if (self.kind == "extract") != (self.schema_ is not None):
            raise ValueError("`schema` belongs to `extract` specialists, and each of them has one")
        for schema, key in ((self.schema_, "schema"), (self.input_schema, "input_schema")):
            if schema is not None:
                try:
                    Draft202012Validator.check_schema(schema)
                except SchemaError as error:
                    raise ValueError(f"`{key}` is no JSON Schema: {error.message}") from None
                except RecursionError:
                    raise ValueError(f"`{key}` is nested too deeply") from None
        if not any(isinstance(piece, InputPiece) for piece in self.prompt):
            raise ValueError(
                '`prompt` has no piece {"input": ...}: the caller\'s text goes nowhere'
            )
        if self.form == "adapter" and not self.golden:
            raise ValueError(
                "an adapter needs `golden` probes: without them one that silently answers like "
                "its base cannot be told"
            )
        return self

    def _check_spoken_labels(self) -> None:
        words = [label.words for label in self.labels if label.words is not None]
        ids = [label.token_id for label in self.labels if label.token_id is not None]
        if words and ids:
            raise ValueError("labels are said by `token_id` or by `words`, not some by each")
        if self.kind == "tag" and (words or self.none_token_id is None):
            raise ValueError("a tag specialist says labels by `token_id`, and has `none_token_id`")
        if len(set(ids)) != len(ids) or self.none_token_id in ids:
            raise ValueError("two labels share one `token_id`")
        for one in words:
            if any(one is not other and other.startswith(one) for other in words):
                raise ValueError(f"the words {one!r} begin (or equal) another label's words")

    @property
    def fields(self) -> tuple[str, ...]:
        """The input's fields in the order of the template; empty when the input is one text."""
        names = tuple(p.input for p in self.prompt if isinstance(p, InputPiece))
        return () if names == ("text",) else names

    def content_id(self) -> str:
        """Return `task@<8 hex>`: the hash of the list of files, this card included.

        The card stands in the list by what changes an answer: everything but its description,
        examples, quality figures and the list itself. So a new temperature is a new specialist.
        """
        card = self.model_dump(
            mode="json",
            by_alias=True,
            exclude={"description", "examples", "quality", "files"},
        )
        listing = {CARD_NAME: _sha256(_canonical(card)), **self.files}
        return f"{self.task}@{_sha256(_canonical(listing))[:8]}"


@dataclass(frozen=True, slots=True)
class Specialist:
    """A verified specialist: where it lies, what its card says, and its id."""

    path: Path
    card: SpecialistCard
    id: str


def load(path: Path, *, verify: bool = True) -> Specialist:
    """Read the specialist in directory `path`; with `verify`, check the hash of every file.

    Raises:
        ConfigError: the card is missing or wrong, or a file is missing or not the one listed.
    """
    card_path = path / CARD_NAME
    try:
        card = SpecialistCard.model_validate_json(card_path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            [f"{card_path}: not there; a specialist is a directory with one"]
        ) from None
    except OSError as error:
        raise ConfigError([f"{card_path}: cannot be read: {error.strerror}"]) from None
    except ValidationError as error:
        raise ConfigError([f"{card_path}: {fault}" for fault in faults_of(error)]) from None
    if verify:
        faults = list(_unlike_listing(path, card))
        if faults:
            raise ConfigError(faults)
    return Specialist(path, card, card.content_id())


def hash_files(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of each named file under `path`, as a card lists them."""
    return {name: file_sha256(path / name) for name in sorted(names)}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def faults_of(error: ValidationError) -> list[str]:
    """Return one line per fault: the key's path, then what is wrong with it."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False):
        loc, advice = fault["loc"], fault["msg"].removeprefix("Value error, ")
        if loc[:1] == ("prompt",) and len(loc) > 2:
            # pydantic has a fault for each sort of piece that this one is not.
            loc, advice = loc[:2], 'write {"control": ...}, {"text": ...} or {"input": ...}'
        lines.append(f"{'.'.join(map(str, loc)) or 'file'}: {advice}")
    return list(dict.fromkeys(lines))


def _unlike_listing(path: Path, card: SpecialistCard) -> Iterable[str]:
    root = path.resolve()
    for name, expected in card.files.items():
        file = (path / name).resolve()
        if root not in file.parents:
            yield f"{path / CARD_NAME}: files: {name!r} lies outside the specialist's directory"
            continue
        try:
            found = file_sha256(file)
        except FileNotFoundError:
            yield f"{file}: not there, though {CARD_NAME} lists it"
        except OSError as error:
            yield f"{file}: cannot be read, though {CARD_NAME} lists it: {error.strerror}"
        else:
            if found != expected:
                yield f"{file}: not the file that {CARD_NAME} lists (sha256 differs): build it anew"


def _repeated(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
