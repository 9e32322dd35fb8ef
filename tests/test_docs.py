"""The documentation against the code: what it names exists, and what exists it names."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import pytest
from click.testing import CliRunner
from fastapi.routing import APIRoute
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from starlette.routing import Route

from server import config
from server.api.errors import STATUS, body_of
from server.api.responses import answer_body
from server.app import create_app
from server.cli import main
from server.config import FleetConfig, GatewayConfig
from server.errors import ConfigError, RequestError
from server.fleet import resolve
from server.specialist import SpecialistCard
from server.telemetry.metrics import Metrics
from server.types import Answer, Classified
from server.worker.fake.__main__ import main as fake_worker
from tests.tiny_fleet import write_fleet

ROOT = Path(__file__).parent.parent
HTTP = ROOT / "docs" / "http.md"
FLEET_TOML = ROOT / "docs" / "fleet-toml.md"
SPECIALISTS = ROOT / "docs" / "specialists.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")]
)
GEMMA = ROOT / "deploy" / "fleet.gemma.toml"
WHOLE = {"workers": {"base": {"model": "m"}}, "tasks": {"t": {"specialist": "s", "worker": "base"}}}
NO_DEFAULT = {"required", "none"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, without the list item's indentation that it may have."""

    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return a page's fenced blocks of some languages."""
    found = []
    for indent, info, body in re.findall(
        r"^( *)```([^\n]*)\n(.*?)^\1```$", page.read_text(), re.MULTILINE | re.DOTALL
    ):
        language = (info.split() or [""])[0]
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        if language in languages:
            found.append(Block(language, "\n".join(lines)))
    return found


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """Return the code spans of a page's prose, broken lines joined."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def rows(page: Path, heading: str) -> list[list[str]]:
    """Return the body rows of the tables under a heading, down to the next one."""
    text = prose(page)
    at = re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE)
    assert at is not None, f"{page.name} has no heading {heading!r}"
    section = re.split(r"^#+ ", text[at.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [re.split(r" *\| *", line.strip()[1:-1]) for line in lines]
    cells = [[cell.strip() for cell in row] for row in cells]
    body = [row for row in cells if not set("".join(row)) <= {"-", "|", " "}]
    assert len(body) > 1, f"{page.name}: no table under {heading!r}"
    return body[1:]


def code(cell: str) -> str:
    """Return a cell's code span, or the cell itself."""
    return cell.strip("` ")


# Links and files.


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    words = re.sub(r"[^\w\- ]", "", heading.lower())
    return words.strip().replace(" ", "-")


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
            assert anchor in map(slug, headings), target


@every_page
def test_files_named_in_code_spans_exist(page: Path) -> None:
    for span in spans(page):
        if re.fullmatch(r"(server|tests|deploy|docs|loadtests|requirements)/[\w./-]+", span):
            assert (ROOT / span).exists(), span


def test_every_room_stands_in_the_architecture() -> None:
    named = {
        code(row[0]).removeprefix("server/").strip("/") for row in rows(ARCHITECTURE, "The rooms")
    }
    rooms = {
        path.name
        for path in (ROOT / "server").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert named == rooms - {"__init__.py"}


def test_the_layers_are_those_that_are_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [one["layers"] for one in contracts["contracts"] if one["type"] == "layers"]
    text = re.search(
        r"^```text layers\n(.*?)^```$", ARCHITECTURE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert text is not None
    assert text.group(1).splitlines() == layers


def test_the_changelog_knows_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


# fleet.toml.


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every table of a configuration: its heading, and what it may hold."""
    for name, field in model.model_fields.items():
        inner, many = section_of(field.annotation)
        if inner is not None:
            table = f"{path}.{name}".strip(".") + (".<name>" if many else "")
            yield f"[{table}]", inner
            yield from sections(inner, table)


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the section that an annotation means, if any, and whether there may be many."""
    many = get_origin(annotation) is dict
    for candidate in (annotation, *get_args(annotation)):
        if is_model(candidate):
            return candidate, many
    return None, many


def is_model(annotation: Any) -> bool:
    """Return whether an annotation is a pydantic model (`dict[str, X]` is a type, too)."""
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


SECTIONS = dict(sections(FleetConfig))


def test_every_section_is_known_to_these_tests() -> None:
    expected = {"[gateway]", "[workers.<name>]", "[tasks.<name>]", "[tasks.<name>.variants.<name>]"}
    assert expected <= SECTIONS.keys()


@pytest.mark.parametrize("heading", SECTIONS)
def test_config_keys_and_defaults_are_documented(heading: str) -> None:
    fields = {
        name: field
        for name, field in SECTIONS[heading].model_fields.items()
        if section_of(field.annotation)[0] is None
    }
    documented = {code(row[0]): code(row[2]) for row in rows(FLEET_TOML, f"`{heading}`")}
    assert documented.keys() == fields.keys()
    for name, field in fields.items():
        if documented[name] in NO_DEFAULT:
            assert field.is_required() == (documented[name] == "required"), name
            assert field.is_required() or field.default is None, name
        else:
            written = tomllib.loads(f"value = {documented[name]}")["value"]
            assert written == plain(default_of(field)), name


def default_of(field: FieldInfo) -> Any:
    """Return a field's default, which must be there."""
    default = field.get_default(call_default_factory=True, validated_data={})
    assert default is not PydanticUndefined
    return default


def plain(value: Any) -> Any:
    """Return a value as TOML or JSON has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def test_flags_that_args_refuses_are_documented() -> None:
    text = FLEET_TOML.read_text()
    assert all(f"`{flag}`" in text for flag in config.OWN_FLAGS)


def toml_blocks() -> list[Any]:
    return [
        pytest.param(block.text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, "toml"))
    ]


@pytest.mark.parametrize("text", toml_blocks())
def test_toml_blocks_are_right_configurations(text: str) -> None:
    document = tomllib.loads(text)
    fleet = FleetConfig.model_validate({**WHOLE, **document, "path": ROOT / "fleet.toml"})
    if {"workers", "tasks"} <= document.keys():
        assert list(fleet.cross_faults()) == []


@pytest.mark.parametrize(
    ("written", "instead", "environ"),
    [
        ("port = 8080", "prot = 8080", {}),
        ('device = "cpu"', 'device = "gpu"', {}),
        ('worker = "base"', 'worker = "bse"', {}),
        ("replicas = 1", "replicas = 1\nport = 8080 #", {}),
        ("max-model-len", "port", {}),
        ("", "", {"FLEET__GATEWAY__PORT": "http"}),
    ],
)
def test_faults_are_worded_as_documented(
    written: str, instead: str, environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text((ROOT / "fleet.toml").read_text().replace(written, instead, 1))
    with pytest.raises(ConfigError) as caught:
        config.load(path, environ)
    (fault,) = caught.value.faults
    said = fault.replace(str(path), "fleet.toml")
    assert f"error: {said}\n" in FLEET_TOML.read_text()


COMMENTED_KEY = re.compile(r"^# ([a-z_]+ = .+)$")
COMMENTED_TABLE = re.compile(r"^# (\[[a-z0-9_.-]+\])$")


def uncommented() -> dict[str, str]:
    """Return fleet.toml once for each commented-out key or table, with that one in force."""
    lines = (ROOT / "fleet.toml").read_text().splitlines()
    variations = {}
    for at, line in enumerate(lines):
        table, key = COMMENTED_TABLE.match(line), COMMENTED_KEY.match(line)
        after = COMMENTED_TABLE.match(lines[at - 1]) if at else None
        varied = list(lines)
        if table:
            name = table.group(1)
            end = at
            while end < len(lines) and lines[end].startswith("# "):
                varied[end] = lines[end].removeprefix("# ")
                end += 1
        elif key and not after and not in_a_commented_table(lines, at):
            name = key.group(1).partition(" = ")[0]
            varied[at] = key.group(1)
            if name in ("urls", "dns"):  # "Or, instead:"
                varied = [
                    one for one in varied if not re.match(r"(replicas|port) = [0-9]{1,2} ", one)
                ]
        else:
            continue
        variations[name] = "\n".join(varied)
    return variations


def in_a_commented_table(lines: list[str], at: int) -> bool:
    """Return whether a commented-out key follows a commented-out table's heading."""
    while at >= 0 and lines[at].startswith("#"):
        if COMMENTED_TABLE.match(lines[at]):
            return True
        at -= 1
    return False


@pytest.mark.parametrize("name", uncommented())
def test_what_fleet_toml_comments_out_is_right(name: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(uncommented()[name])
    config.load(path, {})
    assert uncommented()[name] != (ROOT / "fleet.toml").read_text()


def test_fleet_toml_shows_every_key_of_the_gateway_and_true_defaults() -> None:
    document = tomllib.loads((ROOT / "fleet.toml").read_text())
    variations = uncommented()
    for name, field in GatewayConfig.model_fields.items():
        if name not in document["gateway"]:
            assert name in variations, f"fleet.toml does not show gateway.{name}"
            assert tomllib.loads(variations[name])["gateway"][name] == field.default


# HTTP.


def test_every_error_code_is_documented_with_its_statuses() -> None:
    documented = {
        code(row[0]): {int(status) for status in row[1].split(", ")} for row in rows(HTTP, "Errors")
    }
    statuses: dict[str, set[int]] = {}
    for error in errors_below(RequestError):
        statuses.setdefault(error.code, set()).add(STATUS[error])
    assert documented == statuses


def errors_below(base: type[RequestError]) -> Iterator[type[RequestError]]:
    for error in base.__subclasses__():
        if error.__module__ == "server.errors":
            yield error
            yield from errors_below(error)


def test_every_metric_is_documented_with_its_labels() -> None:
    documented = {code(row[0]): row[1] for row in rows(HTTP, "Metrics")}
    fleet = resolve(config.load(GEMMA, {}))
    declared = {}
    for instrument in vars(Metrics(fleet)).values():
        if isinstance(instrument, MetricWrapperBase):
            (family,) = instrument.describe()
            suffix = "_total" if family.type == "counter" else ""
            labels = ",".join(instrument._labelnames)
            declared[f"{family.name}{suffix}{{{labels}}}"] = family.type
    assert documented == declared


def test_every_endpoint_is_documented_and_every_documented_one_is_there(root: Path) -> None:
    app = create_app(resolve(config.load(write_fleet(root, ""), {})))
    there = {
        f"{method} {route.path}"
        for route in app.routes
        if isinstance(route, APIRoute | Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    documented = {
        span for span in spans(HTTP) if re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) /\S*", span)
    }
    assert documented == there


def json_blocks() -> list[Any]:
    return [
        pytest.param(block.text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, "json"))
    ]


@pytest.mark.parametrize("text", json_blocks())
def test_json_blocks_are_what_the_gateway_writes(text: str) -> None:
    check_shape(json.loads(text))


def check_shape(document: Any) -> None:
    """Check every answer, error and card in a document."""
    if isinstance(document, list):
        for one in document:
            check_shape(one)
    if not isinstance(document, dict):
        return
    for value in document.values():
        check_shape(value)
    if {"id", "output"} <= document.keys():
        real = answer_body(Answer("", "", "", "", Classified("", 1.0, {})))
        assert document.keys() == real.keys()
        assert document["usage"].keys() == real["usage"].keys()
        assert document["timing_ms"].keys() == real["timing_ms"].keys()
    if "error" in document:
        said = document["error"]
        (real,) = {
            json.dumps(list(body_of(error(""), "")["error"])): body_of(error(""), "")["error"]
            for error in errors_below(RequestError)
            if error.code == said["code"]
        }.values()
        assert said.keys() == real.keys()
        assert said["type"] == real["type"]
    if {"kind", "form"} <= document.keys():
        SpecialistCard.model_validate(document)


# Specialists.


def card_keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield each key of a card, dotted, and what stands behind it."""
    for name, field in model.model_fields.items():
        key = path + (field.alias or name)
        inner = list(models_in(field.annotation))
        many = "[]" if get_origin(field.annotation) is tuple else ""
        for one in inner:
            yield from card_keys(one, f"{key}{many}.")
        if not inner:
            yield key, field


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in a union, a tuple or an optional key."""
    if is_model(annotation):
        yield annotation
    elif get_origin(annotation) is tuple or isinstance(annotation, types.UnionType):
        for one in get_args(annotation):
            yield from models_in(one)


def test_every_key_of_a_card_is_documented_with_its_default() -> None:
    documented = {code(row[0]): code(row[1]) for row in rows(SPECIALISTS, "Every key")}
    keys = dict(card_keys(SpecialistCard))
    assert documented.keys() == keys.keys()
    for key, field in keys.items():
        if documented[key] == "required":
            assert field.is_required(), key
        elif documented[key] and key != "input_schema":
            assert json.loads(documented[key]) == plain(default_of(field)), key


# Commands.


def command_lines(page: Path) -> Iterator[list[str]]:
    """Yield every shell command of a page, split; code spans count when they look like one."""
    for block in blocks(page, "sh", "bash", "shell", "console"):
        text = block.text.replace("\\\n", " ")
        if block.language == "console":  # the other lines are what a command answered
            text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        for tokens in shell_lines(text):
            yield from commands_in(tokens)
    for span in spans(page):
        if re.match(r"(\S*/)?(fleet|make) [a-z-]", span) or "server.worker.fake" in span:
            yield from commands_in(shlex.split(span))


def shell_lines(text: str) -> Iterator[list[str]]:
    """Yield the tokens of each line, comments left out; an open quote goes on in the next one."""
    line = ""
    for part in text.splitlines():
        line = f"{line}\n{part}" if line else part
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        try:
            tokens = list(lexer)
        except ValueError:  # no closing quotation
            continue
        yield tokens
        line = ""
    assert not line, f"a quote is never closed: {line}"


def commands_in(tokens: list[str]) -> Iterator[list[str]]:
    words: list[str] = []
    for token in [*tokens, ";"]:
        if set(token) <= set("|&;()"):
            if words:
                yield words
            words = []
        elif words or not re.match(r"[A-Z_]+=", token):  # a variable in front is no command
            words.append(token)


def check_command(words: list[str], command: click.Command) -> None:
    """Check that a command has the subcommands and the options that it is called with."""
    options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    options |= set(command.get_help_option_names(click.Context(command)))
    for at, word in enumerate(words):
        if isinstance(command, click.Group) and not word.startswith("-"):
            if not re.fullmatch(r"[a-z-]+", word):
                return  # a placeholder, or an ellipsis
            assert word in command.commands, f"there is no `{word}`"
            check_command(words[at + 1 :], command.commands[word])
            return
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in options, f"there is no option {word}"


@every_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in command_lines(page):
        if Path(words[0]).name == "fleet":
            check_command(words[1:], main)
        if words[1:3] == ["-m", "server.worker.fake"]:
            check_command(words[3:], fake_worker)


@every_page
def test_options_named_alone_exist(page: Path) -> None:
    known = {
        name
        for command in (*leaves(main), fake_worker)
        for parameter in command.params
        for name in parameter.opts
    } | {"--help", "--version"}
    for span in spans(page):
        if re.fullmatch(r"--[a-z-]+", span):
            assert span in known or span == "--flag" or span == "--no-flag", span


def leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        for one in command.commands.values():
            yield from leaves(one)
    else:
        yield command


@every_page
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    for words in command_lines(page):
        if words[0] == "make":
            wanted = [word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word)]
            assert set(wanted) <= targets, words


@pytest.mark.parametrize(
    "text", [pytest.param(b.text, id=p.name) for p in PAGES for b in blocks(p, "python")]
)
def test_python_blocks_import_what_exists(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("server"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), node.module


@every_page
def test_nothing_points_into_somebodys_home(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(home|root|Users|work)/", page.read_text())


# deploy/fleet.gemma.toml.


def check_gemma(*options: str) -> str:
    arguments = ["check", "--no-tokenizers", "--config", str(GEMMA), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_gemma_fleet_is_good() -> None:
    assert "a good fleet" in check_gemma()


def test_the_gemma_worker_is_started_at_its_pinned_revision() -> None:
    revision = revisions(tomllib.loads(GEMMA.read_text())["workers"])
    assert re.fullmatch(r"[0-9a-f]{40}", revision)
    (line,) = check_gemma("--commands").splitlines()
    words = shlex.split(line)
    assert words[words.index("--revision") + 1] == revision
    for card in GEMMA.parent.glob("gemma/*/specialist.json"):
        assert json.loads(card.read_text())["base_model"]["revision"] == revision


def revisions(workers: Mapping[str, Any]) -> str:
    """Return the one revision of all workers."""
    (revision,) = {worker["revision"] for worker in workers.values()}
    return str(revision)
