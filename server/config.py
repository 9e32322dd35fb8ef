"""`fleet.toml` as a typed, frozen, closed document, with messages that say what to write."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from server.errors import ConfigError

ENV_PREFIX = "FLEET__"
FIRST_WORKER_PORT = 8100
STABLE = "stable"


def _may_be_a_path(text: str) -> str:
    if "\0" in text:
        raise ValueError("no path has a NUL character")
    return text


Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)]
Port = Annotated[int, Field(ge=1, le=65535)]
Where = Annotated[str, Field(min_length=1), AfterValidator(_may_be_a_path)]
Flag = str | int | float | bool | list[str | int | float]

# The supervisor writes these itself; a second opinion in `args` could only contradict it.
OWN_FLAGS = frozenset(
    {
        "model", "revision", "tokenizer-revision", "host", "port", "uds", "served-model-name",
        "enable-lora", "lora-modules", "api-key", "root-path", "api-server-count",
    }
)  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class GatewayConfig(_Section):
    """Where the gateway listens, and the limits that protect it."""

    host: str = "127.0.0.1"
    port: Port = 8080
    request_timeout_seconds: float = Field(default=10.0, gt=0, le=600)
    """The longest that a request may take; `deadline_ms` can only shorten it."""
    drain_timeout_seconds: float = Field(default=10.0, ge=0, le=600)
    """How long a stopping gateway lets requests in flight finish."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024, le=104_857_600)
    max_inputs: int = Field(default=256, ge=1, le=10_000)
    """How many inputs one request may list."""
    max_in_flight: int = Field(default=1024, ge=1, le=100_000)
    """Inputs being answered at once; more are refused with 429."""
    probe_interval_seconds: float = Field(default=1.0, gt=0, le=60)


class WorkerConfig(_Section):
    """One vLLM server: what it serves, and how it is run or reached."""

    model: Where
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    replicas: int = Field(default=1, ge=1, le=64)
    port: Port | None = None
    """The first replica's port; the others follow. By default the first free from 8100 on."""
    urls: tuple[str, ...] = Field(default=(), strict=False)
    dns: str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    dollars_per_hour: float = Field(default=0.0, ge=0)
    startup_timeout_seconds: float = Field(default=300.0, gt=0)
    args: dict[str, Flag] = {}
    env: dict[str, str] = {}

    @property
    def local(self) -> bool:
        """Whether `fleet workers` runs it here."""
        return not self.urls and self.dns is None

    @field_validator("urls")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            TypeAdapter(HttpUrl).validate_python(url)
        if len(set(urls)) != len(urls):
            raise ValueError("the same URL stands there twice")
        return tuple(url.rstrip("/") for url in urls)

    @field_validator("dns")
    @classmethod
    def _has_port(cls, dns: str | None) -> str | None:
        if dns is not None and not re.fullmatch(r"[A-Za-z0-9.-]+:[0-9]{1,5}", dns):
            raise ValueError('write "<name>:<port>", such as "vllm-base.default.svc:8000"')
        return dns

    @field_validator("args")
    @classmethod
    def _are_flags(cls, args: dict[str, Flag]) -> dict[str, Flag]:
        flags = {name.replace("_", "-"): value for name, value in args.items()}
        for name in flags:
            if not re.fullmatch(r"[a-z][a-z0-9.-]*", name):
                raise ValueError(f"{name!r} is no flag of vLLM's: leave out the leading dashes")
            if name in OWN_FLAGS:
                raise ValueError(f"{name!r} follows from the rest of fleet.toml: leave it out")
        return flags

    @model_validator(mode="after")
    def _reached_one_way(self) -> Self:
        given = [key for key in ("urls", "dns") if getattr(self, key)]
        given += [key for key in ("replicas", "port") if key in self.model_fields_set]
        if {"urls", "dns"} <= set(given) or (not self.local and len(given) > 1):
            raise ValueError(
                f"{' and '.join(f'`{key}`' for key in given)} exclude each other: "
                "`replicas` and `port` run it here, `urls` or `dns` find it elsewhere"
            )
        return self


class VariantConfig(_Section):
    """A further specialist that takes a share of a task's requests."""

    specialist: Where
    worker: Name | None = None
    """By default the task's worker."""
    weight: int = Field(default=0, ge=0, le=100)
    """Per cent of the requests; what no variant takes stays with `stable`."""


class TaskConfig(_Section):
    """What callers ask for by name, and who answers."""

    description: str | None = None
    specialist: Where
    worker: Name
    variants: dict[Name, VariantConfig] = {}

    @model_validator(mode="after")
    def _weights_add_up(self) -> Self:
        if STABLE in self.variants:
            raise ValueError(f"variants.{STABLE} is the task's own `specialist`: name it otherwise")
        total = sum(variant.weight for variant in self.variants.values())
        if total > 100:
            raise ValueError(f"the variants' weights add up to {total} per cent: at most 100")
        return self


class FleetConfig(_Section):
    """The whole of `fleet.toml`; `path` is the file that it was read from."""

    path: Path = Field(exclude=True)
    gateway: GatewayConfig = GatewayConfig()
    workers: dict[Name, WorkerConfig] = Field(min_length=1)
    tasks: dict[Name, TaskConfig] = Field(min_length=1)

    @property
    def root(self) -> Path:
        """The directory that relative paths in the file start from."""
        return self.path.parent

    def ports(self) -> dict[str, tuple[int, ...]]:
        """Return each local worker's ports, one a replica, as the file implies them."""
        taken = {self.gateway.port}
        chosen: dict[str, tuple[int, ...]] = {}
        local = {name: worker for name, worker in self.workers.items() if worker.local}
        for name, worker in local.items():
            if worker.port is not None:
                chosen[name] = tuple(range(worker.port, worker.port + worker.replicas))
                taken.update(chosen[name])
        for name, worker in local.items():
            if worker.port is None:
                free = (port for port in range(FIRST_WORKER_PORT, 65536) if port not in taken)
                chosen[name] = tuple(islice(free, worker.replicas))
                taken.update(chosen[name])
        return {name: chosen[name] for name in local}

    def cross_faults(self) -> Iterator[str]:
        """Yield what is wrong between sections, one line per fault."""
        for task_name, task in self.tasks.items():
            yield from self._worker_faults(f"tasks.{task_name}.worker", task.worker)
            for name, variant in task.variants.items():
                if variant.worker is not None:
                    key = f"tasks.{task_name}.variants.{name}.worker"
                    yield from self._worker_faults(key, variant.worker)
        owners: dict[int, str] = {self.gateway.port: "gateway.port"}
        for name, ports in self.ports().items():
            key = f"workers.{name}.port"
            if ports and ports[-1] > 65535:
                yield f"{key}: its {len(ports)} replicas run past port 65535: start lower"
            for port in ports:
                if port in owners:
                    yield f"{key}: port {port} is taken by {owners[port]}: choose another"
                owners.setdefault(port, key)

    def _worker_faults(self, key: str, worker: str) -> Iterator[str]:
        if worker not in self.workers:
            yield f"{key}: there is no [workers.{worker}]{_near(worker, self.workers)}"


def load(path: Path, environ: Mapping[str, str]) -> FleetConfig:
    """Read and check `fleet.toml` with the environment's overrides (`FLEET__GATEWAY__PORT`).

    Raises:
        ConfigError: one line per fault: file, key and what to write instead.
    """
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError([f"{path}: not there: name another with --config"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: byte {error.start} is not UTF-8"]) from None
    except (ValueError, RecursionError) as error:  # tomllib lets int()'s and its own depth's out
        raise ConfigError([f"{path}: no TOML: {_first_line(error)}"]) from None
    overridden = _override(document, environ)
    if "path" in document:  # a field of ours, but no key of the file
        advice = f"unknown key{_near('path', _siblings([]))}"
        raise ConfigError([f"{_source('path', path, overridden)}: path: {advice}"])
    try:
        config = FleetConfig.model_validate({**document, "path": path.resolve()})
    except ValidationError as error:
        explained = [_explain(fault, path, overridden) for fault in error.errors(include_url=False)]
        raise ConfigError(list(dict.fromkeys(explained))) from None
    faults = [
        f"{_source(fault.partition(': ')[0], path, overridden)}: {fault}"
        for fault in config.cross_faults()
    ]
    if faults:
        raise ConfigError(faults)
    return config


def _override(document: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Write the environment's values into `document`; return dotted key -> variable name."""
    origins = {}
    for variable in sorted(environ):
        parts = variable.removeprefix(ENV_PREFIX).split("__")
        if not variable.startswith(ENV_PREFIX) or not all(parts):
            continue
        table = document
        path: list[str] = []
        for position, part in enumerate(parts):
            # A variable's name has no dashes and no lower case: find the key it stands for.
            key = next((k for k in table if k.upper().replace("-", "_") == part), part.lower())
            # But [workers.<name>.env] holds variables itself, and each of their values is text.
            verbatim = position == 3 and path[0] == "workers" and path[2] == "env"
            key = part if verbatim else key
            path.append(key)
            if position == len(parts) - 1:
                text = environ[variable]
                table[key] = text if verbatim else _toml_value(text)
            else:
                table = table.setdefault(key, {})
                if not isinstance(table, dict):
                    raise ConfigError([f"{variable}: {'.'.join(path)} is a value, not a table"])
        origins[".".join(path)] = variable
    return origins


def _toml_value(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _source(key: str, path: Path, overridden: Mapping[str, str]) -> str:
    """Return what set `key` or its table: a variable, or else the file."""
    parts = key.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((overridden[one] for one in prefixes if one in overridden), str(path))


def _explain(fault: ErrorDetails, path: Path, overridden: Mapping[str, str]) -> str:
    # "[key]" marks a fault of a table's key itself, not of what it holds.
    keys = [str(part) for part in fault["loc"] if part != "[key]"]
    key = ".".join(keys) or "the file"
    where = _source(key, path, overridden)
    given = fault["input"]
    if keys[:1] == ["workers"] and keys[2:3] == ["args"] and len(keys) > 3:
        # pydantic has a fault for each type that a flag's value is not.
        key = ".".join(keys[:4])
        return f"{where}: {key}: must be text, a number, true, false or a list of texts and numbers"
    match fault["type"]:
        case "missing":
            advice = f"missing: write `{keys[-1]} = ...`"
        case "extra_forbidden":
            advice = f"unknown key{_near(keys[-1], _siblings(keys[:-1]))}"
        case "string_pattern_mismatch" if "[key]" in fault["loc"]:
            advice = "names are lower-case letters, digits and dashes"
        case "too_short" if key in ("workers", "tasks"):
            advice = f"empty: the fleet needs at least one [{key}.<name>]"
        case "dict_type" | "model_type":
            advice = f"must be a table: write `[{key}]` and its keys below"
        case "tuple_type":
            advice = "must be a list: write `[...]`"
        case _:
            advice = fault["msg"].removeprefix("Value error, ")
            advice = advice[:1].lower() + advice[1:]
            if isinstance(given, str | int | float | bool):
                shown = repr(given)
                advice += f" (it says {shown if len(shown) <= 80 else shown[:79] + '…'})"
    return f"{where}: {key}: {advice}"


def _siblings(keys: list[str]) -> list[str]:
    """Return the keys that the table at `keys` may have."""
    model: type[BaseModel] = FleetConfig
    named: dict[str, type[BaseModel]] = {
        "gateway": GatewayConfig,
        "workers": WorkerConfig,
        "tasks": TaskConfig,
        "variants": VariantConfig,
    }
    for key in keys:
        model = named.get(key, model)
    return [name for name in model.model_fields if name != "path"]


def _near(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    listing = ", ".join(sorted(known)) or "none"
    return f": did you mean `{close[0]}`?" if close else f" (there are: {listing})"
