"""A worker of fleet.toml becomes the command line and the environment that vLLM needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from server.errors import ConfigError
from server.supervisor import vllm
from tests.supervisor.conftest import MakeWorker


def value(line: list[str], flag: str) -> str:
    """Return what follows `flag`, which stands there exactly once."""
    assert line.count(flag) == 1, f"{flag} in {line}"
    return line[line.index(flag) + 1]


def values(line: list[str], flag: str) -> list[str]:
    """Return everything between `flag` and the next flag."""
    rest = line[line.index(flag) + 1 :]
    end = next((n for n, word in enumerate(rest) if word.startswith("--")), len(rest))
    return rest[:end]


def test_a_replica_is_vllms_own_server_on_the_loopback(make_worker: MakeWorker) -> None:
    line = vllm.command(make_worker(replicas=2), 1)
    assert line[:4] == [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
    assert value(line, "--host") == "127.0.0.1"
    assert value(line, "--port") == "8401"
    assert values(line, "--served-model-name") == ["base"]
    assert "--enable-lora" not in line


def test_a_hub_model_is_pinned_to_its_revision(make_worker: MakeWorker) -> None:
    worker = make_worker(model="google/gemma-3-270m-it", revision="a" * 40)
    assert value(vllm.command(worker, 0), "--revision") == "a" * 40
    assert "HF_HUB_OFFLINE" not in vllm.environment(worker)


def test_a_local_model_needs_no_hub(make_worker: MakeWorker) -> None:
    assert vllm.environment(make_worker())["HF_HUB_OFFLINE"] == "1"


def test_every_adapter_has_a_slot_under_its_content_id(make_worker: MakeWorker) -> None:
    worker = make_worker(ranks=(8, 8, 8))
    line = vllm.command(worker, 0)
    assert value(line, "--max-loras") == "3"
    assert values(line, "--lora-modules") == [f"{one.id}={one.path}" for one in worker.adapters]


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [((1,), 1), ((4, 8), 8), ((9,), 16), ((8, {"r": 4, "rank_pattern": {"q_proj": 40}}), 64)],
)
def test_the_rank_is_the_smallest_that_all_fit_in(
    ranks: tuple[object, ...], expected: int, make_worker: MakeWorker
) -> None:
    line = vllm.command(make_worker(ranks=ranks), 0)
    assert value(line, "--max-lora-rank") == str(expected)


def test_vllm_knows_the_ranks(make_worker: MakeWorker) -> None:
    lora = pytest.importorskip("vllm.config.lora")
    assert lora.MaxLoRARanks.__args__ == vllm.RANKS


@pytest.mark.parametrize("ranks", [(513,), ({"no": "rank"},), ([],), ({"r": "many"},)])
def test_an_impossible_adapter_is_refused(
    ranks: tuple[object, ...], make_worker: MakeWorker
) -> None:
    with pytest.raises(ConfigError):
        vllm.command(make_worker(ranks=ranks), 0)


def test_an_adapter_without_its_configuration_is_refused(make_worker: MakeWorker) -> None:
    worker = make_worker(ranks=(8,))
    (worker.adapters[0].path / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"adapter_config\.json: not there"):
        vllm.command(worker, 0)


def test_a_full_model_answers_to_its_content_id_too(make_worker: MakeWorker) -> None:
    line = vllm.command(make_worker(full=True), 0)
    assert values(line, "--served-model-name") == ["base", "base@01234567"]


def test_nothing_that_callers_write_is_logged(make_worker: MakeWorker) -> None:
    line = vllm.command(make_worker(), 0)
    assert {"--disable-uvicorn-access-log", "--no-enable-log-requests"} <= set(line)


def test_json_has_no_free_white_space(make_worker: MakeWorker) -> None:
    told = json.loads(value(vllm.command(make_worker(), 0), "--structured-outputs-config"))
    assert told["disable_any_whitespace"] is True


def test_flags_of_fleet_toml_win_over_the_defaults(make_worker: MakeWorker) -> None:
    args = {
        "max-logprobs": 7,
        "enforce-eager": False,
        "structured-outputs-config.backend": "guidance",
        "max-loras": 9,
        "lora-target-modules": ["q_proj", "v_proj"],
        "middleware": ["a.b", "c.d"],
        "gpu-memory-utilization": 0.5,
    }
    line = vllm.command(make_worker(ranks=(8,), args=args), 0)
    assert value(line, "--max-logprobs") == "7"
    assert value(line, "--max-loras") == "9"
    assert value(line, "--gpu-memory-utilization") == "0.5"
    assert values(line, "--lora-target-modules") == ["q_proj", "v_proj"]
    assert [line[n + 1] for n, word in enumerate(line) if word == "--middleware"] == ["a.b", "c.d"]
    assert "--no-enforce-eager" in line
    assert "--enforce-eager" not in line
    assert "--structured-outputs-config" not in line


def test_the_environment_of_fleet_toml_wins_over_the_defaults(make_worker: MakeWorker) -> None:
    worker = make_worker(env={"VLLM_CPU_KVCACHE_SPACE": "4", "OWN": "1"})
    variables = vllm.environment(worker)
    assert (variables["VLLM_CPU_KVCACHE_SPACE"], variables["OWN"]) == ("4", "1")
    assert {variables["VLLM_NO_USAGE_STATS"], variables["DO_NOT_TRACK"]} == {"1"}


def test_a_cuda_worker_has_no_settings_of_the_cpu(make_worker: MakeWorker) -> None:
    worker = make_worker(device="cuda")
    assert "VLLM_CPU_KVCACHE_SPACE" not in vllm.environment(worker)
    assert not {"--dtype", "--enforce-eager"} & set(vllm.command(worker, 0))


def test_both_are_pure(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = make_worker(ranks=(8,))
    before = vllm.command(worker, 0), vllm.environment(worker)
    monkeypatch.setenv("FLEET_API_KEYS", "secret")
    monkeypatch.chdir(tmp_path)
    assert (vllm.command(worker, 0), vllm.environment(worker)) == before
    assert "secret" not in str(before)


def test_vllm_accepts_every_flag(make_worker: MakeWorker) -> None:
    arg_parsers = pytest.importorskip("vllm.entrypoints.launchers.cli_args")
    argparse = pytest.importorskip("vllm.utils.argparse_utils")
    parser = arg_parsers.make_arg_parser(argparse.FlexibleArgumentParser())
    line = vllm.command(make_worker(ranks=(8, 8)), 0)
    options = parser.parse_args(line[4:])
    assert (options.port, options.max_loras, options.max_lora_rank) == (8400, 2, 8)
    assert options.enable_log_requests is False
    assert [one.name for one in options.lora_modules] == ["task-0@01234567", "task-1@01234567"]
