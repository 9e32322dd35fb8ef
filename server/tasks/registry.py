"""The tasks that callers can ask for, each with its variants ready to be asked."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jsonschema import Draft202012Validator

from server.errors import ConfigError, InputTooLong, InvalidRequest, UnknownTask, UnknownVariant
from server.fleet import Fleet, Variant
from server.prompt import PromptTemplate
from server.specialist import SpecialistCard
from server.tasks.answer import Reader, reader
from server.tasks.tokenizer import FromHub, TaskTokenizer, TokenizerShelf
from server.types import Input, Prompt

# Longer texts are encoded in a thread (the tokenizer lets go of the GIL): about 2 ms' worth.
_INLINE_CHARACTERS = 8_192


class ServedVariant:
    """A variant with its tokenizer, template and reader: everything but a worker."""

    def __init__(self, variant: Variant, tokenizer: TaskTokenizer) -> None:
        card = variant.specialist.card
        self.variant = variant
        self.name = variant.name
        self.weight = variant.weight
        self.specialist = variant.specialist
        self.reader: Reader = reader(card, tokenizer.decode)
        self._tokenizer = tokenizer
        self._fields = card.fields or ("text",)
        self._template = PromptTemplate(card.prompt, tokenizer.tokenizer)
        self._validator = Draft202012Validator(card.input_schema)

    async def prompt(self, value: Input) -> Prompt:
        """Return the token ids that ask about `value`.

        Raises:
            InvalidRequest: the input is not what the task takes.
            InputTooLong: the prompt has more tokens than the specialist reads.
        """
        fault = next(self._validator.iter_errors(value), None)
        if fault is not None:
            where = ".".join(["input", *(str(part) for part in fault.absolute_path)])
            raise InvalidRequest(_shortened(f"{where}: {fault.message}"), param=where)
        texts = [value] if isinstance(value, str) else [str(value.get(f, "")) for f in self._fields]
        limit = self.specialist.card.max_prompt_tokens
        characters = sum(map(len, texts))
        # No token stands for more characters than the longest piece, so this many tokens are
        # certain, and a megabyte is refused without encoding it.
        at_least = characters // self._tokenizer.longest_piece
        if at_least > limit:
            raise _too_long(f"at least {at_least}", limit)
        if characters > _INLINE_CHARACTERS:
            prompt = await asyncio.to_thread(self._template.encode, value)
        else:
            prompt = self._template.encode(value)
        if len(prompt.token_ids) > limit:
            raise _too_long(str(len(prompt.token_ids)), limit)
        return prompt

    def encode(self, value: Input) -> Prompt:
        """Return the prompt for an input that is known to be right, such as a golden probe's."""
        return self._template.encode(value)


@dataclass(frozen=True, slots=True)
class Task:
    """What callers ask for by name; `stable` is the first of its variants."""

    name: str
    description: str
    variants: tuple[ServedVariant, ...]

    @property
    def stable(self) -> ServedVariant:
        """The variant that speaks for the task in its documentation."""
        return self.variants[0]

    @property
    def card(self) -> SpecialistCard:
        """The stable specialist's card: kind, labels and schemas are the same in every variant."""
        return self.stable.specialist.card

    def variant(self, name: str) -> ServedVariant:
        """Return the variant of that name.

        Raises:
            UnknownVariant: the task has none such.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.variants)
        raise UnknownVariant(
            _shortened(f"the task {self.name!r} has no variant {name!r}; there are: {known}"),
            param="variant",
        )


class TaskRegistry:
    """All tasks of the fleet, by name."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = {task.name: task for task in tasks}

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def resolve(self, name: str) -> Task:
        """Return the task of that name.

        Raises:
            UnknownTask: there is none; the message names near misses.
        """
        task = self._tasks.get(name)
        if task is not None:
            return task
        near = difflib.get_close_matches(name[:100], self._tasks, n=3)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?" if near else "GET /v1/tasks lists all"
        )
        raise UnknownTask(_shortened(f"there is no task {name!r}; {hint}"), param="task")

    def served(self) -> Iterator[ServedVariant]:
        """Yield every variant of every task."""
        for task in self._tasks.values():
            yield from task.variants


def build(fleet: Fleet, from_hub: FromHub) -> TaskRegistry:
    """Make every task of the fleet ready to be asked.

    Raises:
        ConfigError: a tokenizer is missing or does not fit a card.
    """
    faults: list[str] = []
    shelf = TokenizerShelf(fleet, from_hub)
    tasks = []
    for name, variants in fleet.variants.items():
        served = []
        for variant in variants:
            try:
                served.append(_serve(variant, shelf.of(variant)))
            except ConfigError as error:
                faults += error.faults
        if served:
            described = (
                fleet.config.tasks[name].description or served[0].specialist.card.description
            )
            tasks.append(Task(name, described, tuple(served)))
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return TaskRegistry(tasks)


def _serve(variant: Variant, tokenizer: TaskTokenizer) -> ServedVariant:
    path, card = variant.specialist.path, variant.specialist.card
    size = tokenizer.tokenizer.get_vocab_size(with_added_tokens=True)
    ids = [*(label.token_id for label in card.labels), card.none_token_id]
    beyond = [token_id for token_id in ids if token_id is not None and token_id >= size]
    if beyond:
        raise ConfigError([f"{path}: labels: token {beyond[0]} is beyond the tokenizer's {size}"])
    try:
        return ServedVariant(variant, tokenizer)
    except ConfigError as error:
        raise ConfigError([f"{path}: {fault}" for fault in error.faults]) from None


def _too_long(tokens: str, limit: int) -> InputTooLong:
    return InputTooLong(
        f"the prompt has {tokens} tokens, and this specialist reads at most {limit}: "
        "shorten the input",
        param="input",
    )


def _shortened(message: str, limit: int = 300) -> str:
    return message if len(message) <= limit else f"{message[: limit - 1]}…"
