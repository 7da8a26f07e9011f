"""Floating-point operations of BERT pre-training, from which MFU is computed.

Multiplication and addition count as two. Only operations that the model requires are counted: no
padding, no recomputation, and the vocabulary only for masked tokens.
"""

from __future__ import annotations

import math
from itertools import pairwise

from bertds.config.padded_vocabulary import padded_vocabulary
from bertds.config.ramps import BatchRamp, MaskRate
from bertds.config.recipe import Config, ModelConfig

PIECES = 200
"""A changing masking rate is averaged over at most this number of parts of a range of steps."""


def forward_backward_flops(
    model: ModelConfig, vocab_size: int, tokens: float, masked: float, rows: float = 1.0
) -> float:
    """Return the operations of one forward and backward pass.

    3 * [L (8 H^2 + 4 H I) T + 4 H L T S + P (2 H^2 + 2 H V) + 2 H^2], where the backward pass costs
    twice the forward pass. With I = 4 H the first term is the usual 24 H^2 L T. The feed-forward
    layer of a modern encoder has a gate, hence 6 H I; its local layers have a window instead of S.

    Args:
        model: the model: width H, layers L, feed-forward width I.
        vocab_size: vocabulary size V.
        tokens: real tokens T of all rows.
        masked: masked tokens P of all rows.
        rows: number of rows; every row is assumed to have S = tokens / rows tokens.
    """
    width, layers = model.hidden_size, model.num_hidden_layers
    length = tokens / max(rows, 1e-9)
    products = 6 if model.style == "modern" else 4
    linear = layers * tokens * (8 * width**2 + products * width * model.intermediate_size)
    seen = sum(seen_tokens(model, number, length) for number in range(layers))
    attention = 4 * width * tokens * seen
    head = masked * (2 * width**2 + 2 * width * vocab_size)
    pooler = rows * 2 * width**2 if model.next_sentence else 0.0
    return 3.0 * (linear + attention + head + pooler)


def seen_tokens(model: ModelConfig, layer: int, length: float) -> float:
    """Return the number of tokens that each token attends to in a layer, in a row of ``length``."""
    if model.style == "modern" and layer % model.global_attn_every_n_layers:
        return min(length, model.local_attention + 1.0)
    return length


def parameter_count(model: ModelConfig, vocab_size: int) -> int:
    """Return the number of trained parameters, including the padding rows of the word table."""
    width, inner = model.hidden_size, model.intermediate_size
    rows = padded_vocabulary(vocab_size)
    if model.style == "modern":
        layer = 4 * width * width + 3 * width * inner + 2 * width
        # Word table and its LayerNorm; the first layer has one LayerNorm less; the last LayerNorm;
        # the head and its LayerNorm; the vocabulary's bias.
        around = rows * width + width - width + width + width * width + width + rows
        return around + model.num_hidden_layers * layer
    embeddings = (rows + model.max_position_embeddings + model.type_vocab_size + 2) * width
    layer = 4 * width * width + 4 * width + 2 * width * inner + inner + width + 4 * width
    head = width * width + 3 * width + rows
    count = embeddings + model.num_hidden_layers * layer + head
    if model.next_sentence:
        count += width * width + width + 2 * width + 2
    return count


def masked_per_row(tokens: float, probability: float, most: int) -> float:
    """Return the number of masked tokens in a row with this number of real tokens."""
    return min(float(most), max(1.0, probability * tokens))


def mean_masked_per_row(
    config: Config, ramp: BatchRamp, tokens: float, first: int = 0, last: int | None = None
) -> float:
    """Return the mean number of masked tokens in a row of a range of steps.

    Every step has its own rate, and its weight is its number of rows.

    Args:
        config: the recipe.
        ramp: the global batch of each step.
        tokens: real tokens of a row.
        first: the first step, counted from 0.
        last: the step after the last one; None = the end of the run.
    """
    data, most = config.data, config.data.max_predictions_per_sequence
    rate = MaskRate.of(data, config.schedule.total_steps)
    if rate is None:
        return masked_per_row(tokens, data.masked_lm_prob, most)
    last = config.schedule.total_steps if last is None else last
    # The rate changes until a certain step; after it, it is constant.
    turn = min(max(rate.steps, first), last)
    pieces = max(1, min(PIECES, turn - first))
    ends = [first + (turn - first) * n // pieces for n in range(pieces + 1)]
    masked, rows = 0.0, 0
    for begin, end in pairwise([*ends, last]):
        here = ramp.samples(end) - ramp.samples(begin)
        middle = (rate.at(begin) + rate.at(end - 1)) / 2
        masked, rows = masked + here * masked_per_row(tokens, middle, most), rows + here
    return masked / rows


def mean_tokens(sequence_length: int) -> float:
    """Return the real tokens of a Wikipedia row, if nothing better is known.

    512: 254 (half of the slots of Wikipedia rows are padding). 128: 115 (measured: 10%
    padding). Other lengths are interpolated on a logarithmic scale.
    """
    place = min(1.0, max(0.0, math.log2(sequence_length / 128) / 2))
    return sequence_length * (0.90 + (254 / 512 - 0.90) * place)
