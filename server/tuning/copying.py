"""Starting weights that can already copy: the two attention layers of an induction head.

Copying an unseen name needs a layer that tells each token which token came before it, and a later
one that looks up where the current token was said and takes what followed. Gradient descent finds
that circuit only after thousands of steps from random weights. Written into the start, it leaves
the few minutes that a laptop has for learning what to copy. (In the spirit of Trockman & Kolter,
"Mimetic Initialization of Self-Attention Layers", 2023; the circuit is from Olsson et al.,
"In-context Learning and Induction Heads", 2022.)

The hidden dimensions fall into three parts: one constant, the content of the token, and the
content of the token before it. Training is free to use them otherwise.
"""

from __future__ import annotations

import math

import torch
from transformers import Gemma3ForCausalLM

FAST_PAIRS = 4
"""Rotary pairs whose angle turns fast enough to tell neighbours apart."""

SHARPNESS = 1.9
"""Scale of normalised queries and keys in the two layers; scores grow with its square."""

CONSTANT = 4.0
"""Size of the constant dimension, beside content of size 1."""


@torch.no_grad()  # type: ignore[untyped-decorator]
def install_copying(model: Gemma3ForCausalLM) -> None:
    """Write a previous-token head into layer 0 and an induction head into layer 1, in place.

    Raises:
        ValueError: the model has a single layer, or is too narrow to hold two tokens' content.
    """
    config = model.config
    hidden, head = config.hidden_size, config.head_dim
    if config.num_hidden_layers < 2 or hidden <= 2 * head:
        raise ValueError("copying needs two layers, and more than twice a head's dimensions")
    before = slice(hidden - head, hidden)
    content = slice(1, hidden - head)
    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=1.0 / math.sqrt(hidden))
    embedding[:, 0] = CONSTANT / math.sqrt(hidden)
    embedding[:, before] = 0.0
    width = hidden - head - 1
    view = torch.linalg.qr(torch.randn(width, width))[0][:head]
    for layer in model.model.layers:
        for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
            norm.weight.fill_(-0.6)
    _look_one_back(model, content, before, view)
    _look_up(model, content, before, view)


def _look_one_back(
    model: Gemma3ForCausalLM, content: slice, before: slice, view: torch.Tensor
) -> None:
    layer, head = model.model.layers[0], model.config.head_dim
    attention = layer.self_attn
    half = head // 2
    angles = model.config.rope_parameters["sliding_attention"]["rope_theta"] ** (
        -torch.arange(FAST_PAIRS) / half
    )
    fast = [*range(FAST_PAIRS), *range(half, half + FAST_PAIRS)]
    # The key is the query turned on by one position, so they agree at a distance of one.
    attention.q_proj.weight[:head] = 0.0
    attention.q_proj.weight[:FAST_PAIRS, 0] = 1.0
    attention.k_proj.weight[:head] = 0.0
    attention.k_proj.weight[:FAST_PAIRS, 0] = angles.cos()
    attention.k_proj.weight[half : half + FAST_PAIRS, 0] = angles.sin()
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[fast] = SHARPNESS - 1.0
    attention.v_proj.weight[:head] = 0.0
    attention.v_proj.weight[:head, content] = view
    attention.o_proj.weight[:, :head] = 0.0
    attention.o_proj.weight[before, :head] = torch.eye(head)
    layer.post_attention_layernorm.weight.fill_(0.0)


def _look_up(model: Gemma3ForCausalLM, content: slice, before: slice, view: torch.Tensor) -> None:
    layer, head = model.model.layers[1], model.config.head_dim
    attention = layer.self_attn
    half = head // 2
    # Only slowly turning pairs still agree over the length of a prompt.
    slow = torch.arange(head) % half >= half // 3
    attention.q_proj.weight[:head] = 0.0
    attention.q_proj.weight[:head, content] = view * slow[:, None]
    attention.k_proj.weight[:head] = 0.0
    attention.k_proj.weight[:head, before] = torch.eye(head) * slow[:, None]
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight.fill_(SHARPNESS - 1.0)
    attention.v_proj.weight[:head] = 0.0
    attention.v_proj.weight[:head, content] = view
    attention.o_proj.weight[:, :head] = 0.0
    attention.o_proj.weight[content, :head] = view.T
    layer.post_attention_layernorm.weight.fill_(0.0)
