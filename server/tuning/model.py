"""The Gemma 3 architecture in small: made from nothing, saved and loaded as bf16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from transformers.utils import logging as transformers_logging

from server.tuning.tokenizer import BOS, END_OF_TURN, EOS, PAD, control_id

WEIGHTS = "model.safetensors"
SLIDING_WINDOW = 512


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a Gemma 3 text model; every figure that its checkpoint needs."""

    hidden: int = 192
    layers: int = 4
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 64
    intermediate: int = 448
    max_positions: int = 1024


def new_model(shape: Architecture, tokenizer: Tokenizer, seed: int) -> Gemma3ForCausalLM:
    """Return a model with random weights that are the same for the same seed."""
    torch.manual_seed(seed)
    # Every second layer sees all positions, with the slow rotation that copying over a distance
    # needs.
    kinds = ("sliding_attention", "full_attention")
    config = Gemma3TextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        query_pre_attn_scalar=shape.head_dim,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.max_positions,
        sliding_window=SLIDING_WINDOW,
        layer_types=[kinds[i % 2] for i in range(shape.layers)],
        tie_word_embeddings=True,
        pad_token_id=control_id(tokenizer, PAD),
        bos_token_id=control_id(tokenizer, BOS),
        eos_token_id=[control_id(tokenizer, EOS), control_id(tokenizer, END_OF_TURN)],
    )
    return _for_two_cores(Gemma3ForCausalLM(config))


def load_model(directory: Path) -> Gemma3ForCausalLM:
    """Read a checkpoint into float32: its bf16 weights exactly, computed without rounding."""
    with _quiet():
        model = Gemma3ForCausalLM.from_pretrained(
            directory, dtype=torch.float32, local_files_only=True
        )
    return _for_two_cores(model)


def save_model(model: Gemma3ForCausalLM, directory: Path) -> None:
    """Write weights as bf16, and the configuration that stops generation where a turn ends.

    The model itself is rounded too, so what is measured afterwards is what was written.
    """
    round_to_bf16(model)
    config = model.config
    model.generation_config.pad_token_id = config.pad_token_id
    model.generation_config.bos_token_id = config.bos_token_id
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.cache_implementation = None
    with _quiet():
        model.to(torch.bfloat16).save_pretrained(directory)
    model.to(torch.float32)


def round_to_bf16(model: torch.nn.Module) -> None:
    """Round every parameter to the nearest bf16 value, in place."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def model_files(directory: Path) -> list[str]:
    """Return the names of a checkpoint's files, its tokenizer's included."""
    return sorted(path.name for path in directory.iterdir() if path.name != "specialist.json")


def parameter_count(directory: Path) -> int:
    """Return how many weights a saved checkpoint has, read from its header."""
    with (directory / WEIGHTS).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for size in tensor["shape"]:
                count *= size
            total += count
    return total


def _for_two_cores(model: Gemma3ForCausalLM) -> Gemma3ForCausalLM:
    # For short sequences on a CPU, plain matrix products beat the fused kernel by a third,
    # most of all backwards.
    model.set_attn_implementation("eager")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own bars: progress is the caller's to show."""
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
