"""The fleet as `fleet.toml` and the specialists' cards together imply it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from server import specialist
from server.config import STABLE, FleetConfig, WorkerConfig
from server.errors import ConfigError
from server.specialist import Specialist


@dataclass(frozen=True, slots=True)
class Variant:
    """One specialist as one arm of a task."""

    task: str
    name: str
    specialist: Specialist
    worker: str
    weight: int
    """Per cent of the task's requests."""

    @property
    def key(self) -> str:
        """Where fleet.toml names it."""
        return _key(self.task, self.name)


@dataclass(frozen=True, slots=True)
class Worker:
    """A vLLM server and the specialists that it must serve."""

    name: str
    config: WorkerConfig
    model: str
    """What vLLM loads: an absolute directory or a hub id."""
    ports: tuple[int, ...]
    """One a local replica; empty for a worker that runs elsewhere."""
    adapters: tuple[Specialist, ...]
    full: tuple[Specialist, ...]
    """The specialists that the model itself is: one fine-tune, or several ways to prompt it."""

    @property
    def specialists(self) -> tuple[Specialist, ...]:
        """Every specialist that each replica must prove."""
        return (*self.full, *self.adapters)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything that runs: variants by task (`stable` first) and workers by name."""

    config: FleetConfig
    variants: dict[str, tuple[Variant, ...]]
    workers: dict[str, Worker]

    def tokenizer_file(self, variant: Variant) -> Path | None:
        """Return the `tokenizer.json` that a variant's prompts are made with.

        None when only the hub has it (under the worker's `model` and `revision`).
        """
        homes = [variant.specialist.path, Path(self.workers[variant.worker].model)]
        files = [home / "tokenizer.json" for home in homes]
        return next((file for file in files if _there(file.is_file)), None)


def resolve(config: FleetConfig) -> Fleet:
    """Load every specialist that `config` names and check that it fits its worker.

    Raises:
        ConfigError: one line per fault, each naming the file and the key.
    """
    faults: list[str] = []
    loaded: dict[Path, Specialist] = {}
    variants: dict[str, tuple[Variant, ...]] = {}
    for task in config.tasks:
        found = []
        for arm, where, home, weight in _arms(config, task):
            path = (config.root / where).resolve()
            if not _there((path / specialist.CARD_NAME).is_file):
                faults.append(
                    f"{config.path}: {_key(task, arm)}.specialist: {where!r} is no directory with "
                    f"a {specialist.CARD_NAME}: name one"
                )
                continue
            try:
                loaded[path] = loaded.get(path) or specialist.load(path)
            except ConfigError as error:
                faults += error.faults
                continue
            found.append(Variant(task, arm, loaded[path], home, weight))
        variants[task] = tuple(found)
        faults += _unlike_stable(config, found)
    everyone = [variant for arms in variants.values() for variant in arms]
    workers = {}
    for name, ports in {**dict.fromkeys(config.workers, ()), **config.ports()}.items():
        worker = _worker(config, name, ports, [v for v in everyone if v.worker == name])
        workers[name] = worker
        if worker.config.local and not _is_model(worker.model, config.root):
            faults.append(
                f"{config.path}: workers.{name}.model: {worker.config.model!r} is neither a "
                'directory with a config.json nor a hub id such as "google/gemma-3-270m-it"'
            )
    faults += _misfits(config, everyone, workers)
    faults += _too_long(config, everyone, workers)
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return Fleet(config, variants, {name: workers[name] for name in config.workers})


def _key(task: str, variant: str) -> str:
    return f"tasks.{task}" if variant == STABLE else f"tasks.{task}.variants.{variant}"


def _there(is_one: Callable[[], bool]) -> bool:
    try:
        return is_one()
    except OSError:  # a name too long, a directory that may not be entered
        return False


def _arms(config: FleetConfig, task_name: str) -> Iterator[tuple[str, str, str, int]]:
    task = config.tasks[task_name]
    rest = 100 - sum(variant.weight for variant in task.variants.values())
    yield STABLE, task.specialist, task.worker, rest
    for name, variant in task.variants.items():
        yield name, variant.specialist, variant.worker or task.worker, variant.weight


def _worker(
    config: FleetConfig, name: str, ports: tuple[int, ...], variants: list[Variant]
) -> Worker:
    section = config.workers[name]
    directory = (config.root / section.model).resolve()
    specialists = {variant.specialist.id: variant.specialist for variant in variants}
    return Worker(
        name=name,
        config=section,
        model=str(directory) if _there(directory.is_dir) else section.model,
        ports=ports,
        adapters=tuple(one for one in specialists.values() if one.card.form == "adapter"),
        full=tuple(one for one in specialists.values() if one.card.form == "full"),
    )


def _is_model(model: str, root: Path) -> bool:
    if _there(Path(model).is_dir):
        return _there((Path(model) / "config.json").is_file)
    # A hub id is "owner/name"; where "owner" is a directory here, a missing path was meant.
    owner, _, name = model.partition("/")
    return bool(owner and name) and "/" not in name and not _there((root / owner).is_dir)


def _misfits(
    config: FleetConfig, variants: list[Variant], workers: dict[str, Worker]
) -> Iterator[str]:
    weights_sha256: dict[str, str] = {}
    for variant in variants:
        worker, one = workers[variant.worker], variant.specialist
        where = f"{config.path}: {variant.key}"
        if one.card.task != variant.task:
            yield (
                f"{where}.specialist: {one.path.name} was made for the task {one.card.task!r}, "
                f"not for {variant.task!r}"
            )
        if one.card.form == "full":
            if not _is_the_model(one, worker):
                yield (
                    f"{where}.worker: {one.id} is a full model and needs a worker of its own with "
                    f'`model = "{one.path.name}"`; {variant.worker!r} serves '
                    f"{worker.config.model!r}"
                )
            continue
        base = one.card.base_model
        weights = Path(worker.model) / "model.safetensors"
        if base.sha256 is not None and _there(weights.is_file):
            if worker.model not in weights_sha256:
                weights_sha256[worker.model] = specialist.file_sha256(weights)
            fits = weights_sha256[worker.model] == base.sha256
        else:
            fits = base.name in (worker.config.model, Path(worker.model).name) and (
                base.revision in (None, worker.config.revision)
            )
        if not fits:
            yield (
                f"{where}.worker: the adapter {one.id} was made for the base {base.name!r} "
                f"({base.revision or base.sha256 or 'any revision'}), which is not what "
                f"{variant.worker!r} serves ({worker.config.model!r}, "
                f"{worker.config.revision or 'by content'}): train it again or name its base"
            )


def _too_long(
    config: FleetConfig, variants: list[Variant], workers: dict[str, Worker]
) -> Iterator[str]:
    """Yield the specialists whose longest prompt and answer do not fit their worker's context."""
    for variant in variants:
        context = workers[variant.worker].config.args.get("max-model-len")
        card = variant.specialist.card
        answer = 1 if card.kind in ("classify", "tag") else card.sampling.max_tokens
        if isinstance(context, int) and card.max_prompt_tokens + answer > context:
            yield (
                f"{config.path}: workers.{variant.worker}.args.max-model-len: {context} is too "
                f"short for {variant.specialist.id}, which reads {card.max_prompt_tokens} tokens "
                f"and writes {answer}: write {card.max_prompt_tokens + answer} or more"
            )


def _unlike_stable(config: FleetConfig, arms: list[Variant]) -> Iterator[str]:
    """Yield how a task's variants differ in what callers see: that must be the same in all."""
    for arm in arms[1:]:
        first, other = arms[0].specialist.card, arm.specialist.card
        seen = {
            "kind": (first.kind, other.kind),
            "labels": ([one.label for one in first.labels], [one.label for one in other.labels]),
            "schema": (first.schema_, other.schema_),
            "input_schema": (first.input_schema, other.input_schema),
        }
        for key, (ours, theirs) in seen.items():
            if ours != theirs:
                yield (
                    f"{config.path}: {arm.key}.specialist: its `{key}` is not that of "
                    f"{arms[0].specialist.id}: callers of one task must not see a difference, "
                    "so make it a task of its own"
                )


def _is_the_model(one: Specialist, worker: Worker) -> bool:
    if Path(worker.model) == one.path:
        return True
    base = one.card.base_model
    return not one.card.files and (base.name, base.revision) == (
        worker.config.model,
        worker.config.revision,
    )
