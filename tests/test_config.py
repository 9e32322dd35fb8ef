"""`fleet.toml` is read whole or refused in words: file, key, what to write instead."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server import config
from server.config import FleetConfig, GatewayConfig
from server.errors import ConfigError
from tests.strategies import toml_values

GOOD = """
[gateway]
port = 9000

[workers.base]
model = "specialists/base"

[workers.far-away]
model = "owner/name"
urls = ["http://vllm-0:8000"]

[tasks.sentiment]
specialist = "specialists/sentiment"
worker = "base"

[tasks.bedtime-story]
specialist = "specialists/story"
worker = "far-away"

[tasks.bedtime-story.variants.canary]
specialist = "specialists/story-2"
weight = 5
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a fleet.toml goes."""
    return tmp_path / "fleet.toml"


def load(path: Path, text: str = GOOD, **environ: str) -> FleetConfig:
    path.write_text(text)
    return config.load(path, environ)


def faults_of(path: Path, text: str, **environ: str) -> tuple[str, ...]:
    """Return what is wrong with a file; `<file>` stands for its path."""
    with pytest.raises(ConfigError) as caught:
        load(path, text, **environ)
    return tuple(fault.replace(str(path), "<file>") for fault in caught.value.faults)


def with_worker(lines: str) -> str:
    """Return the good file with more lines under `[workers.base]`."""
    return GOOD.replace('model = "specialists/base"', f'model = "specialists/base"\n{lines}')


def test_a_good_file_is_read_with_its_defaults(path: Path) -> None:
    read = load(path)
    assert read.gateway.port == 9000
    assert read.gateway.host == GatewayConfig().host == "127.0.0.1"
    assert list(read.tasks) == ["sentiment", "bedtime-story"]
    assert read.tasks["bedtime-story"].variants["canary"].weight == 5
    assert read.workers["base"].local
    assert not read.workers["far-away"].local


def test_paths_in_the_file_start_from_its_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(GOOD)
    monkeypatch.chdir(path.parent)
    assert config.load(Path("fleet.toml"), {}).root == path.parent.resolve()


def test_the_repositorys_own_fleet_is_a_good_one() -> None:
    own = Path(__file__).parents[1] / "fleet.toml"
    assert config.load(own, {}).tasks


ONE_FAULT: dict[str, tuple[str, str]] = {
    "unknown section": (
        GOOD.replace("[gateway]", "[gatway]"),
        "<file>: gatway: unknown key: did you mean `gateway`?",
    ),
    "unknown gateway key": (
        GOOD.replace("port = 9000", "prot = 9000"),
        "<file>: gateway.prot: unknown key: did you mean `port`?",
    ),
    "unknown worker key": (
        with_worker("replica = 2"),
        "<file>: workers.base.replica: unknown key: did you mean `replicas`?",
    ),
    "unknown task key": (
        GOOD.replace("[tasks.sentiment]", "[tasks.sentiment]\ndescripton = 'x'"),
        "<file>: tasks.sentiment.descripton: unknown key: did you mean `description`?",
    ),
    "unknown variant key": (
        GOOD.replace("weight = 5", "wieght = 5"),
        "<file>: tasks.bedtime-story.variants.canary.wieght: unknown key: did you mean `weight`?",
    ),
    "a key like nothing": (
        GOOD.replace("weight = 5", "zzz = 5"),
        "<file>: tasks.bedtime-story.variants.canary.zzz: unknown key "
        "(there are: specialist, weight, worker)",
    ),
    "a field of ours": (
        'path = "elsewhere"\n' + GOOD,
        "<file>: path: unknown key (there are: gateway, tasks, workers)",
    ),
    "missing key": (
        GOOD.replace('specialist = "specialists/sentiment"\n', ""),
        "<file>: tasks.sentiment.specialist: missing: write `specialist = ...`",
    ),
    "text for a number": (
        GOOD.replace("9000", '"9000"'),
        "<file>: gateway.port: input should be a valid integer (it says '9000')",
    ),
    "truth for a number": (
        GOOD.replace("9000", "true"),
        "<file>: gateway.port: input should be a valid integer (it says True)",
    ),
    "too large": (
        GOOD.replace("9000", "65536"),
        "<file>: gateway.port: input should be less than or equal to 65535 (it says 65536)",
    ),
    "infinite price": (
        with_worker("dollars_per_hour = inf"),
        "<file>: workers.base.dollars_per_hour: input should be a finite number (it says inf)",
    ),
    "value for a table": (
        GOOD.replace("[gateway]\nport = 9000", "gateway = 9000"),
        "<file>: gateway: must be a table: write `[gateway]` and its keys below",
    ),
    "text for a list": (
        GOOD.replace('["http://vllm-0:8000"]', '"http://vllm-0:8000"'),
        "<file>: workers.far-away.urls: must be a list: write `[...]`",
    ),
    "empty section": (
        GOOD.split("[tasks")[0] + "[tasks]",
        "<file>: tasks: empty: the fleet needs at least one [tasks.<name>]",
    ),
    "name": (
        GOOD.replace("[tasks.sentiment]", "[tasks.Senti_Ment]"),
        "<file>: tasks.Senti_Ment: names are lower-case letters, digits and dashes",
    ),
    "device": (
        with_worker('device = "tpu"'),
        "<file>: workers.base.device: input should be 'cpu' or 'cuda' (it says 'tpu')",
    ),
    "stable": (
        GOOD.replace("variants.canary", "variants.stable"),
        "<file>: tasks.bedtime-story: variants.stable is the task's own `specialist`: "
        "name it otherwise",
    ),
    "weights": (
        GOOD + "[tasks.bedtime-story.variants.b]\nspecialist = 'x'\nweight = 96\n",
        "<file>: tasks.bedtime-story: the variants' weights add up to 101 per cent: at most 100",
    ),
    "unknown worker": (
        GOOD.replace('worker = "base"', 'worker = "bse"'),
        "<file>: tasks.sentiment.worker: there is no [workers.bse]: did you mean `base`?",
    ),
    "unknown worker of a variant": (
        GOOD + 'worker = "x"',
        "<file>: tasks.bedtime-story.variants.canary.worker: there is no [workers.x] "
        "(there are: base, far-away)",
    ),
    "port of the gateway": (
        with_worker("port = 9000"),
        "<file>: workers.base.port: port 9000 is taken by gateway.port: choose another",
    ),
    "port of another worker": (
        with_worker("port = 9100\nreplicas = 2") + "[workers.third]\nmodel = 'm'\nport = 9101\n",
        "<file>: workers.third.port: port 9101 is taken by workers.base.port: choose another",
    ),
    "past the last port": (
        with_worker("port = 65530\nreplicas = 64"),
        "<file>: workers.base.port: its 64 replicas run past port 65535: start lower",
    ),
    "run here and found elsewhere": (
        GOOD.replace("urls =", "replicas = 2\nurls ="),
        "<file>: workers.far-away: `urls` and `replicas` exclude each other: `replicas` and `port` "
        "run it here, `urls` or `dns` find it elsewhere",
    ),
    "found twice": (
        GOOD.replace("urls =", 'dns = "a:1"\nurls ='),
        "<file>: workers.far-away: `urls` and `dns` exclude each other: `replicas` and `port` "
        "run it here, `urls` or `dns` find it elsewhere",
    ),
    "dns without a port": (
        with_worker('dns = "vllm"'),
        '<file>: workers.base.dns: write "<name>:<port>", such as "vllm-base.default.svc:8000" '
        "(it says 'vllm')",
    ),
    "the same url twice": (
        GOOD.replace('["http://vllm-0:8000"]', '["http://a", "http://a"]'),
        "<file>: workers.far-away.urls: the same URL stands there twice",
    ),
    "no url": (
        GOOD.replace('["http://vllm-0:8000"]', '["vllm-0"]'),
        "<file>: workers.far-away.urls: input should be a valid URL, relative URL without a base "
        "(it says 'vllm-0')",
    ),
    "dashes of a flag": (
        with_worker('args = { "--max-model-len" = 9 }'),
        "<file>: workers.base.args: '--max-model-len' is no flag of vLLM's: leave out the leading "
        "dashes",
    ),
    "a flag that is not the user's": (
        with_worker("args = { served_model_name = 'x' }"),
        "<file>: workers.base.args: 'served-model-name' follows from the rest of fleet.toml: "
        "leave it out",
    ),
    "a flag of no type": (
        with_worker("args = { seed = { a = 1 } }"),
        "<file>: workers.base.args.seed: must be text, a number, true, false or a list of texts "
        "and numbers",
    ),
    "nul": (
        GOOD.replace('"specialists/sentiment"', '"a\\u0000b"'),
        "<file>: tasks.sentiment.specialist: no path has a NUL character (it says 'a\\x00b')",
    ),
    "a long value": (
        GOOD.replace("9000", f'"{"9" * 5000}"'),
        f"<file>: gateway.port: input should be a valid integer (it says '{'9' * 78}…)",
    ),
    "declared twice": (
        GOOD + "[gateway]\n",
        "<file>: no TOML: Cannot declare ('gateway',) twice (at line 23, column 9)",
    ),
}


@pytest.mark.parametrize("wrong", list(ONE_FAULT))
def test_a_fault_is_one_line_with_file_key_and_what_to_write(path: Path, wrong: str) -> None:
    text, line = ONE_FAULT[wrong]
    assert faults_of(path, text) == (line,)


def test_every_fault_of_a_file_is_said_at_once(path: Path) -> None:
    text = GOOD.replace("9000", "0").replace("weight = 5", "weight = 101").replace("urls", "url")
    keys = {fault.split(": ")[1] for fault in faults_of(path, text)}
    assert keys == {
        "gateway.port",
        "workers.far-away.url",
        "tasks.bedtime-story.variants.canary.weight",
    }


@pytest.mark.parametrize(
    "content",
    [b"[gateway", b"= 3", b"a = 1\na = 2", b"a = " + b"1" * 5000, b"a = " + b"[" * 50_000, b"\xff"],
)
def test_what_is_no_toml_is_one_line_naming_the_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(path, {})
    (fault,) = caught.value.faults
    assert fault.startswith(f"{path}: ")
    assert "\n" not in fault


def test_a_file_that_is_not_there_says_how_to_name_another(path: Path) -> None:
    with pytest.raises(ConfigError, match="not there: name another with --config"):
        config.load(path, {})


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path, {})


def positions(table: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the key path of every value and table in a document."""
    found = []
    for key, value in table.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += positions(value, (*above, key))
    return found


DOCUMENT = tomllib.loads(GOOD)


@given(
    where=st.sampled_from(positions(DOCUMENT)),
    how=st.sampled_from(["replace", "remove", "rename", "add"]),
    key=st.one_of(st.text(max_size=8), st.sampled_from(["path", "port", "dns", "args", "env"])),
    value=toml_values,
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@example(where=("workers",), how="replace", key="", value={})
@example(where=("workers", "base", "model"), how="add", key="port", value=2**64)
@example(where=("workers", "base", "model"), how="add", key="urls", value=["http://[", "\0"])
@example(where=("workers", "base", "model"), how="add", key="args", value={"a": [[1]]})
def test_whatever_stands_in_the_file_it_is_read_or_refused_in_words(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: tuple[str, ...],
    how: str,
    key: str,
    value: Any,
) -> None:
    document = copy.deepcopy(DOCUMENT)
    *above, last = where
    table = document
    for part in above:
        table = table[part]
    if how == "replace":
        table[last] = value
    elif how == "remove":
        del table[last]
    elif how == "rename":
        table[key] = table.pop(last)
    else:
        table[key] = value
    path.write_text("")
    # Any document that TOML can say, without a writer of TOML.
    with monkeypatch.context() as patched:
        patched.setattr("tomllib.loads", lambda _: document)
        try:
            faults: tuple[str, ...] = (f"{config.load(path, {}).path}: read",)
        except ConfigError as error:
            faults = error.faults
    assert faults
    assert all(fault.startswith(f"{path}: ") for fault in faults)
    assert len(set(faults)) == len(faults)


@given(text=st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_text_a_variable_has_it_is_read_or_refused_under_its_name(
    path: Path, text: str
) -> None:
    path.write_text(GOOD)
    try:
        port = config.load(path, {"FLEET__GATEWAY__PORT": text}).gateway.port
        faults: tuple[str, ...] = ()
    except ConfigError as error:
        port, faults = 0, error.faults
    assert 1 <= port <= 65535 or all(f.startswith("FLEET__GATEWAY__PORT: ") for f in faults)
    assert bool(port) != bool(faults)


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("FLEET__GATEWAY__PORT", "9100", lambda read: read.gateway.port == 9100),
        ("FLEET__GATEWAY__HOST", "0.0.0.0", lambda read: read.gateway.host == "0.0.0.0"),  # noqa: S104
        ("FLEET__GATEWAY__HOST", '"::1"', lambda read: read.gateway.host == "::1"),
        (
            "FLEET__TASKS__BEDTIME_STORY__VARIANTS__CANARY__WEIGHT",
            "25",
            lambda read: read.tasks["bedtime-story"].variants["canary"].weight == 25,
        ),
        (
            "FLEET__WORKERS__FAR_AWAY__URLS",
            '["http://a:1", "http://b:2/"]',
            lambda read: read.workers["far-away"].urls == ("http://a:1", "http://b:2"),
        ),
        (
            "FLEET__WORKERS__BASE__ARGS__MAX_MODEL_LEN",
            "512",
            lambda read: read.workers["base"].args == {"max-model-len": 512},
        ),
        (
            "FLEET__WORKERS__BASE__ENV__OMP_NUM_THREADS",
            "4",
            lambda read: read.workers["base"].env == {"OMP_NUM_THREADS": "4"},
        ),
    ],
)
def test_any_key_can_be_set_from_the_environment(
    path: Path, variable: str, value: str, found: Any
) -> None:
    assert not found(load(path))
    assert found(load(path, **{variable: value}))


def test_a_section_that_the_file_lacks_can_be_set_too(path: Path) -> None:
    text = GOOD.replace("[gateway]\nport = 9000\n", "")
    assert load(path, text, FLEET__GATEWAY__PORT="9100").gateway.port == 9100


def test_other_variables_are_left_alone(path: Path) -> None:
    assert load(path, FLEET_CONFIG="x", FLEET__="x", FLEET____PORT="1", PORT="1") == load(path)


WRONG_VARIABLES = [
    ("FLEET__GATEWAY__PORT", "nine", "gateway.port: input should be a valid integer"),
    ("FLEET__GATEWAY__PORT", "1\nhost = 2", "gateway.port: input should be a valid integer"),
    ("FLEET__GATEWAY__PORT", "[" * 5000, "gateway.port: input should be a valid integer"),
    ("FLEET__GATEWAY__PROT", "1", "gateway.prot: unknown key: did you mean `port`?"),
    ("FLEET__GATEWAY", "1", "gateway: must be a table"),
    ("FLEET__GATEWAY__PORT__X", "1", "gateway.port is a value, not a table"),
    ("FLEET__PATH", "x", "path: unknown key"),
    ("FLEET__TASKS__BEDTIME_STORY__WORKER", "bse", "tasks.bedtime-story.worker: there is no"),
    ("FLEET__WORKERS__FAR_AWAY__URLS", "[1]", "workers.far-away.urls.0: input should be a valid"),
    (
        "FLEET__TASKS__BEDTIME_STORY__VARIANTS__CANARY__WEIGHT",
        "101",
        "tasks.bedtime-story.variants.canary.weight: input should be less than",
    ),
]


@pytest.mark.parametrize(("variable", "value", "expected"), WRONG_VARIABLES)
def test_a_wrong_value_from_the_environment_names_its_variable(
    path: Path, variable: str, value: str, expected: str
) -> None:
    (fault,) = faults_of(path, GOOD, **{variable: value})
    assert fault.startswith(f"{variable}: {expected}")
    assert "\n" not in fault


def test_ports_follow_from_the_file_and_clash_with_nothing(path: Path) -> None:
    text = GOOD.replace("9000", "8101") + (
        "[workers.fixed]\nmodel = 'm'\nport = 8103\nreplicas = 2\n[workers.last]\nmodel = 'm'\n"
    )
    read = load(path, text.replace('"specialists/base"', '"b"\nreplicas = 3'))
    # 8101 is the gateway's, 8103 and 8104 are fixed.
    assert read.ports() == {"base": (8100, 8102, 8105), "fixed": (8103, 8104), "last": (8106,)}


@given(
    gateway=st.integers(8095, 8110),
    workers=st.lists(
        st.tuples(st.integers(1, 5), st.one_of(st.none(), st.integers(8090, 8115))),
        min_size=1,
        max_size=5,
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_replica_has_a_port_of_its_own_or_the_clash_is_said(
    path: Path, gateway: int, workers: list[tuple[int, int | None]]
) -> None:
    text = f"[gateway]\nport = {gateway}\n[tasks.t]\nspecialist = 's'\nworker = 'w0'\n"
    for n, (replicas, port) in enumerate(workers):
        text += f"[workers.w{n}]\nmodel = 'm'\nreplicas = {replicas}\n"
        text += f"port = {port}\n" if port else ""
    explicit = [port + n for replicas, port in workers if port is not None for n in range(replicas)]
    clash = len({gateway, *explicit}) < 1 + len(explicit)
    try:
        ports = load(path, text).ports()
    except ConfigError as error:
        ports = {}
        said = all("is taken by" in fault for fault in error.faults)
        assert said, error.faults  # noqa: PT017 - which faults they are is the property
    assert clash == (not ports)
    if ports:
        every = [gateway, *(port for some in ports.values() for port in some)]
        assert len(set(every)) == len(every) == 1 + sum(replicas for replicas, _ in workers)


def test_flags_may_be_written_with_underscores(path: Path) -> None:
    read = load(path, with_worker("args = { max_model_len = 9, async-scheduling = false }"))
    assert read.workers["base"].args == {"max-model-len": 9, "async-scheduling": False}


def test_a_read_file_cannot_be_changed(path: Path) -> None:
    read = load(path)
    with pytest.raises(ValueError, match="frozen"):
        read.gateway.port = 1  # type: ignore[misc]
