"""`fleet check`: the resolved fleet, or one line per fault and exit 2; never a traceback."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from server.cli import main
from tests.tiny_fleet import cards, write_fleet, write_specialist

CANARY = "[tasks.colour.variants.canary]\nspecialist = 'specialists/colour'\nweight = 5\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a good fleet whose adapters have what vLLM's command line needs."""
    path = write_fleet(tmp_path, "replicas = 2\ndollars_per_hour = 0.04", variants=CANARY)
    for task in cards():
        (tmp_path / "specialists" / task / "adapter_config.json").write_text('{"r": 8}')
    return path


def check(path: Path, *arguments: str, **environ: str) -> Result:
    """Run `fleet check` in a process of its own environment."""
    cleared = {"FLEET_CONFIG": None, "FLEET__GATEWAY__PORT": None}
    return CliRunner().invoke(
        main, ["check", "--config", str(path), *arguments], env={**cleared, **environ}
    )


def faults(result: Result) -> list[str]:
    """Return the lines of a refusal."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), "no traceback"
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def test_a_good_fleet_is_shown_whole(path: Path) -> None:
    result = check(path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{path}: a good fleet\n")
    assert "gateway   http://127.0.0.1:8080" in result.stdout
    assert "http://127.0.0.1:8100, http://127.0.0.1:8101, $0.04/h a replica" in result.stdout
    for task in cards():
        assert f"task      {task}/stable: {task}@" in result.stdout
    assert "(classify, adapter, 3 labels) on base, 95 %" in result.stdout
    assert "task      colour/canary: " in result.stdout


def test_json_is_the_same_fleet_for_machines(path: Path) -> None:
    shown = json.loads(check(path, "--json").stdout)
    assert shown["config"] == str(path)
    assert shown["gateway"]["port"] == 8080
    base = shown["workers"]["base"]
    assert base["replicas"] == ["http://127.0.0.1:8100", "http://127.0.0.1:8101"]
    assert base["started_here"] is True
    stable, canary = shown["tasks"]["colour"]
    assert (stable["weight"], canary["weight"]) == (95, 5)
    assert stable["labels"] == ["red", "green", "blue"]
    assert stable["specialist"] in base["specialists"]
    assert list(shown["tasks"]) == list(cards())


def test_json_says_where_workers_elsewhere_are(tmp_path: Path) -> None:
    path = write_fleet(tmp_path, "dns = 'vllm.svc:8000'")
    base = json.loads(check(path, "--json").stdout)["workers"]["base"]
    assert base["replicas"] == ["dns:vllm.svc:8000"]
    assert base["started_here"] is False


def test_commands_are_one_line_per_replica_that_a_shell_can_run(path: Path) -> None:
    lines = check(path, "--commands").stdout.splitlines()
    assert len(lines) == 2
    for port, line in zip(("8100", "8101"), lines, strict=True):
        words = shlex.split(line)
        assert words[words.index("--port") + 1] == port
        assert words[words.index("--model") + 1] == str(path.parent / "specialists" / "base")
        modules = [word for word in words if word.startswith("colour@")]
        assert len(modules) == 1
        assert modules[0].endswith(f"={path.parent / 'specialists' / 'colour'}")


def test_commands_of_an_adapter_that_peft_did_not_write_are_refused(path: Path) -> None:
    config = path.parent / "specialists" / "story" / "adapter_config.json"
    config.unlink()
    (fault,) = faults(check(path, "--commands"))
    assert fault.startswith(f"{config}: not there")


def test_without_tokenizers_a_fleet_is_checked_all_the_same(path: Path) -> None:
    (path.parent / "specialists" / "base" / "tokenizer.json").write_text("{}")
    assert check(path, "--no-tokenizers").exit_code == 0
    (fault,) = faults(check(path))
    assert "tokenizer.json: no tokenizer: " in fault


REFUSED: dict[str, tuple[str, str, str]] = {
    "malformed": ("[gateway]", "[gateway", "<file>: no TOML: "),
    "unknown section": ("[gateway]", "[gatewy]", "<file>: gatewy: unknown key: did you mean"),
    "unknown key": (
        "replicas = 2",
        "replcas = 2",
        "<file>: workers.base.replcas: unknown key: did you mean `replicas`?",
    ),
    "type": ("replicas = 2", "replicas = 'two'", "<file>: workers.base.replicas: input should be"),
    "specialist": (
        "'specialists/story'",
        "'specialists/stories'",
        "<file>: tasks.story.specialist: 'specialists/stories' is no directory with a",
    ),
    "worker": (
        "[tasks.story]\nspecialist = 'specialists/story'\nworker = 'base'",
        "[tasks.story]\nspecialist = 'specialists/story'\nworker = 'bass'",
        "<file>: tasks.story.worker: there is no [workers.bass]: did you mean `base`?",
    ),
    "weights": ("weight = 5", "weight = 101", "<file>: tasks.colour.variants.canary.weight: "),
    "port": (
        "[gateway]",
        "[gateway]\nport = 8101\n[workers.two]\nport = 8101\nmodel = 'a/b'",
        "<file>: workers.two.port: port 8101 is taken by gateway.port: choose another",
    ),
}


@pytest.mark.parametrize("wrong", list(REFUSED))
def test_a_wrong_file_is_one_line_with_file_and_key(path: Path, wrong: str) -> None:
    old, new, expected = REFUSED[wrong]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    (fault,) = faults(check(path))
    assert fault.replace(str(path), "<file>").startswith(expected)


def test_weights_over_a_hundred_together_name_the_task(path: Path) -> None:
    more = CANARY.replace("canary", "second").replace("5", "96")
    path.write_text(path.read_text() + more)
    assert faults(check(path)) == [
        f"{path}: tasks.colour: the variants' weights add up to 101 per cent: at most 100"
    ]


def test_a_file_of_a_specialist_that_was_changed_is_named(path: Path) -> None:
    colour = path.parent / "specialists" / "colour"
    write_specialist(colour, {**cards()["colour"], "files": {"adapter_config.json": "0" * 64}})
    (fault,) = faults(check(path))
    assert fault.startswith(f"{colour / 'adapter_config.json'}: not the file that ")


def test_an_adapter_of_another_base_names_the_tasks_worker(path: Path) -> None:
    write_specialist(
        path.parent / "specialists" / "topics",
        {**cards()["topics"], "base_model": {"name": "other"}},
    )
    (fault,) = faults(check(path))
    assert fault.startswith(f"{path}: tasks.topics.worker: the adapter topics@")


def test_a_wrong_card_names_the_card_and_its_key(path: Path) -> None:
    topics = path.parent / "specialists" / "topics"
    write_specialist(topics, {**cards()["topics"], "lables": []})
    (fault,) = faults(check(path))
    assert fault.startswith(f"{topics / 'specialist.json'}: lables: ")


def test_several_faults_are_several_lines(path: Path) -> None:
    text = path.read_text().replace("replicas = 2", "replicas = 0").replace("weight", "wait")
    path.write_text(text)
    assert len(faults(check(path))) == 2


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (fault,) = faults(check(tmp_path / "fleet.toml"))
    assert fault == f"{tmp_path / 'fleet.toml'}: not there: name another with --config"


def test_a_directory_for_a_file_is_refused(tmp_path: Path) -> None:
    result = check(tmp_path)
    assert result.exit_code == 2
    assert "is a directory" in result.stderr


def test_an_unknown_option_is_refused(path: Path) -> None:
    result = check(path, "--jsn")
    assert result.exit_code == 2
    assert "--json" in result.stderr


def test_the_environment_overrides_the_file_dashes_and_all(path: Path) -> None:
    write_specialist(
        path.parent / "specialists" / "night-story", {**cards()["story"], "task": "night-story"}
    )
    section = "[tasks.night-story]\nspecialist = 'nowhere'\nworker = 'base'\n"
    path.write_text(path.read_text() + section)
    result = check(
        path,
        "--json",
        FLEET__GATEWAY__PORT="9123",
        FLEET__TASKS__NIGHT_STORY__SPECIALIST="specialists/night-story",
    )
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["gateway"]["port"] == 9123
    assert shown["tasks"]["night-story"][0]["specialist"].startswith("night-story@")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("FLEET__GATEWAY__PORT", "none", "gateway.port: input should be a valid integer"),
        ("FLEET__WORKERS__BASE__REPLICS", "2", "workers.base.replics: unknown key: did you mean"),
        ("FLEET__TASKS__STORY__WORKER", "bass", "tasks.story.worker: there is no [workers.bass]"),
    ],
)
def test_a_wrong_value_from_the_environment_names_its_variable(
    path: Path, variable: str, value: str, expected: str
) -> None:
    (fault,) = faults(check(path, **{variable: value}))
    assert fault.startswith(f"{variable}: {expected}")


def test_the_file_may_be_named_by_the_environment(path: Path) -> None:
    result = CliRunner().invoke(main, ["check"], env={"FLEET_CONFIG": str(path)})
    assert result.exit_code == 0, result.output
    assert str(path) in result.stdout
