"""Every cure looks for its fault first, and the switch turns the plugin off."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from server.engine import linear, operators, plugin

punica_cpu = pytest.importorskip("vllm.lora.punica_wrapper.punica_cpu")


@pytest.fixture
def stock_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.ops import torch_ops

    for ours in operators.OPERATORS:
        monkeypatch.setattr(punica_cpu, ours.__name__, getattr(torch_ops, ours.__name__))
    # Puts the method back as it was after a test that replaces it.
    wrapper = punica_cpu.PunicaWrapperCPU
    monkeypatch.setattr(wrapper, "add_lora_linear", wrapper.add_lora_linear)


def test_vllm_finds_the_plugin() -> None:
    (found,) = [one for one in entry_points(group="vllm.general_plugins") if one.name == "fleet"]
    assert found.load() is plugin.register


@pytest.mark.usefixtures("stock_operators")
def test_grouped_operators_take_the_place_of_vllms() -> None:
    plugin.group_lora()
    assert all(getattr(punica_cpu, one.__name__) is one for one in operators.OPERATORS)
    assert punica_cpu.PunicaWrapperCPU.add_lora_linear is linear.add_lora_linear


@pytest.mark.usefixtures("stock_operators")
def test_operators_of_another_signature_stay_and_are_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bgmv_expand(inputs: torch.Tensor, something_new: int) -> None: ...

    monkeypatch.setattr(punica_cpu, "bgmv_expand", bgmv_expand)
    before = [getattr(punica_cpu, one.__name__) for one in operators.OPERATORS]
    with caplog.at_level(logging.WARNING, plugin.__name__):
        plugin.group_lora()
    assert [getattr(punica_cpu, one.__name__) for one in operators.OPERATORS] == before
    assert "bgmv_expand is not the one" in caplog.text


@pytest.mark.usefixtures("stock_operators")
@pytest.mark.parametrize("switch", ["off", "stock-lora"])
def test_the_switch_leaves_vllm_its_operators(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugin.SWITCH, switch)
    plugin.register()
    assert not any(getattr(punica_cpu, one.__name__) is one for one in operators.OPERATORS)


@pytest.mark.usefixtures("stock_operators")
def test_another_platform_keeps_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import platforms

    monkeypatch.delenv(plugin.SWITCH, raising=False)
    monkeypatch.setattr(platforms.current_platform, "is_cpu", lambda: False, raising=False)
    plugin.register()
    assert not any(getattr(punica_cpu, one.__name__) is one for one in operators.OPERATORS)


@pytest.mark.parametrize(("supported", "asked"), [(True, 1), (False, 0)])
def test_amx_is_asked_for_where_the_cpu_has_it(
    supported: bool, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def grant() -> bool:
        calls.append("asked")
        return True

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: supported, raising=False)
    monkeypatch.setattr(torch.cpu, "_init_amx", grant, raising=False)
    plugin.ask_for_amx()
    assert len(calls) == asked


def test_a_torch_that_knows_no_amx_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_init_amx", raising=False)
    plugin.ask_for_amx()


def test_more_labels_than_vllm_grants_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import sampling_params

    monkeypatch.setattr(sampling_params, "MAX_LOGPROB_TOKEN_IDS", 128)
    plugin.allow_many_labels()
    assert plugin.MOST_LABELS == sampling_params.MAX_LOGPROB_TOKEN_IDS


ORPHAN = """
import multiprocessing, os, signal, time
from server.engine import plugin

def orphan(pids):
    plugin.end_with_parent()
    plugin.end_with_parent()
    pids.send(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=orphan, args=(theirs,)).start()
    print(ours.recv(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_engine_process_ends_when_its_server_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "server_that_is_killed.py"
    script.write_text(ORPHAN)
    # The orphan holds stdout open: end of file means that it is gone, too.
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, timeout=50, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{int(done.stdout)}").exists() or _is_dead(int(done.stdout))


def test_a_server_itself_is_not_watched() -> None:
    assert multiprocessing.parent_process() is None
    plugin.end_with_parent()
    assert os.getpid() > 0


def _is_dead(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
