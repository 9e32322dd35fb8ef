"""A Gemma 3 of a few hundred kilobytes, and LoRA adapters for it, random but seeded.

For tests that need a real checkpoint and not a good one. It answers no question, but any vLLM or
transformers loads it, and two adapters of different seeds answer plainly differently.
"""

from __future__ import annotations

from pathlib import Path
from string import printable

VOCABULARY_SIZE = 512
CONTROL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
LABEL_TOKENS = tuple(f"<unused{n}>" for n in range(10))
LABEL_IDS = tuple(range(len(CONTROL_TOKENS), len(CONTROL_TOKENS) + len(LABEL_TOKENS)))
"""Token ids that a classification may stand on, as Gemma's `<unusedN>` do."""

_WORDS = ("yes", "no", "the", "and", "label")


def write_tiny_base(path: Path, seed: int = 0) -> Path:
    """Write a random Gemma 3 with its tokenizer into directory `path`, and return it."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=1024,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"],
        # Large enough for a distribution that is far from flat.
        initializer_range=0.15,
        dtype="bfloat16",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Gemma3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(path)
    write_tiny_tokenizer(path)
    return path


def write_tiny_adapter(path: Path, base: Path, seed: int = 1) -> Path:
    """Write a random LoRA adapter of rank 8 for the tiny model in `base`, and return `path`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zero until trained: an adapter that does nothing
                    parameter.normal_(std=0.2)
    model.save_pretrained(path)
    return path


def write_tiny_tokenizer(path: Path) -> Path:
    """Write a tokenizer built as Gemma's is (bytes as a last resort) into `path`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*CONTROL_TOKENS, *LABEL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [char for char in printable if char != " "] + ["▁"]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        for end in range(1, len(word)):
            if word[: end + 1] not in pieces:
                merges.append((word[:end], word[end]))
                pieces.append(word[: end + 1])
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in (*CONTROL_TOKENS, *LABEL_TOKENS)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(path)
    return path
