"""LoRA adapters as peft trains them and vLLM loads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM

from server.tuning.model import round_to_bf16

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """The size of an adapter; vLLM takes ranks 8, 16, 32 and 64."""

    rank: int = 16
    alpha: int = 32


def add_adapter(model: Gemma3ForCausalLM, shape: AdapterShape, seed: int) -> PeftModel:
    """Freeze `model` and put a new adapter beside each of its linear layers, in place."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=list(MODULES),
    )
    return get_peft_model(model, config)


def save_adapter(adapted: PeftModel, base_name: str, directory: Path) -> None:
    """Write the adapter as bf16 under `directory`, and round the one in memory as well."""
    round_adapter(adapted)
    weights = get_peft_model_state_dict(adapted)
    half = {name: weights[name].to(torch.bfloat16).contiguous() for name in sorted(weights)}
    save_file(half, directory / ADAPTER_FILES[1], metadata={"format": "pt"})
    config = adapted.peft_config["default"]
    config.save_pretrained(str(directory))
    # peft writes sets in any order and the base's path on this machine: neither may reach a
    # file whose hash names the specialist.
    path = directory / ADAPTER_FILES[0]
    written = json.loads(path.read_text())
    written |= {"base_model_name_or_path": base_name, "target_modules": sorted(MODULES)}
    written["inference_mode"] = True
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def round_adapter(adapted: PeftModel) -> None:
    """Round the adapter's weights to bf16 in place; the base is rounded already."""
    round_to_bf16(adapted)


def load_adapter(model: Gemma3ForCausalLM, directory: Path) -> PeftModel:
    """Put a saved adapter beside a loaded base."""
    return PeftModel.from_pretrained(model, str(directory), local_files_only=True)
