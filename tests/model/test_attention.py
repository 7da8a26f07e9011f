"""The ways to attend agree with each other, with gradients, and with a loop over rows."""

from __future__ import annotations

import math

import pytest
import torch

from bertds.model.attention_kernels import grouped_attention, padded_attention
from bertds.model.row_layout import arrange

HEADS, WIDTH = 3, 8


def layout_of(lengths: list[int]):
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return arrange(cu_seqlens, max(lengths)).layout


def literal_attention(qkv: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """softmax(Q K^T / sqrt(D)) V, row by row and head by head."""
    output = torch.empty(qkv.shape[0], HEADS, WIDTH)
    start = 0
    for length in lengths:
        row = qkv[start : start + length]
        for head in range(HEADS):
            query, key, value = (row[:, part, head] for part in range(3))
            weights = torch.softmax(query @ key.T / math.sqrt(WIDTH), dim=-1)
            output[start : start + length, head] = weights @ value
        start += length
    return output


@pytest.mark.parametrize("attend", [grouped_attention, padded_attention])
@pytest.mark.parametrize("lengths", [[7, 7, 5, 3, 3, 1], [4], [6, 6, 6]])
def test_output_and_gradient_equal_the_definition(attend, lengths) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, HEADS, WIDTH, requires_grad=True)
    upstream = torch.randn(sum(lengths), HEADS, WIDTH)
    expected = literal_attention(qkv, lengths)
    (expected_gradient,) = torch.autograd.grad(expected, qkv, upstream)
    output = attend(*qkv.unbind(1), layout_of(lengths), 0.0)
    (gradient,) = torch.autograd.grad(output, qkv, upstream)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropout_p", [0.1, 0.4])
def test_dropout_statistics_equal_the_padded_path(dropout_p) -> None:
    """Mean and variance of each output element over many draws, against torch's own dropout."""
    torch.manual_seed(0)
    lengths, draws = [12, 9, 9, 4], 4000
    qkv = torch.randn(sum(lengths), 3, HEADS, WIDTH)
    layout = layout_of(lengths)
    moments = []
    for attend in (grouped_attention, padded_attention):
        outputs = torch.stack([attend(*qkv.unbind(1), layout, dropout_p) for _ in range(draws)])
        moments.append((outputs.mean(0), outputs.var(0)))
    (mean, variance), (expected_mean, expected_variance) = moments
    clean = grouped_attention(*qkv.unbind(1), layout, 0.0)
    # Means: within five standard errors for all of the 816 elements.
    error = (expected_variance / draws).sqrt()
    assert ((mean - clean).abs() / error).max() < 5
    assert ((mean - expected_mean).abs() / (error * math.sqrt(2))).max() < 5
    # Variances: element by element within sampling noise, and without bias on the whole.
    ratio = variance / expected_variance
    assert ratio.min() > 0.75
    assert ratio.max() < 1.33
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.01)
