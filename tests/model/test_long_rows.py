"""The attention kernels for long rows, in Triton's interpreter on a CPU, as they are on a GPU."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

from bertds.model import fused_layer  # noqa: E402
from bertds.model.bert import BertForPreTraining  # noqa: E402
from bertds.model.kernels import long_rows  # noqa: E402
from bertds.model.kernels.add_norm import Drop, draw_keys  # noqa: E402
from bertds.model.kernels.short_rows import LONGEST_ROW  # noqa: E402
from bertds.model.row_layout import RowLayout  # noqa: E402
from tests.gpu.small_bert import CONFIG  # noqa: E402

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1"
)

# Both sides of a block and of a step, an empty row, and rows far shorter than the longest.
LENGTHS = [129, 0, 150, 64, 3]
HEADS, WIDTH = 2, 16
WORD = 0xFFFFFFFF


def mix(place: Tensor, first: int, second: int) -> Tensor:
    """The hash of ``add_norm.mix_bits``, in int64."""
    x = place ^ first
    x = ((x ^ (x >> 16)) * 0x7FEB352D & WORD) ^ second
    return (x ^ (x >> 15)) * 0x846CA68B & WORD


def kept(row: int, length: int, blocks: int, keys: Tensor, p: float) -> Tensor:
    """The dropout mask [heads, queries, keys] of a row, from the definition of its hash."""
    first, second, _, _, *positions = (int(key) & WORD for key in keys)
    of_query, of_key = torch.tensor(positions).split(128)
    place = torch.arange(length)
    block, inside = place // 64, place % 64
    heads = torch.arange(HEADS)[:, None, None]
    numbers = ((row * HEADS + heads) * blocks + block[:, None]) * blocks + block
    # int64 products of two 32-bit numbers overflow; their lower 32 bits are right.
    pairs = of_query[inside][:, None] * of_key[inside] & WORD
    bits = (mix(numbers, first, second) | 1) * pairs & WORD
    return bits / 2**32 >= round(p * 2**23) / 2**23


def attend_exactly(qkv: Tensor, starts: Tensor, p: float, keys: Tensor) -> Tensor:
    """Softmax attention of each row in float64, with the masks of :func:`kept`."""
    outputs = []
    blocks = -(-max(LENGTHS) // 64)
    for row, (low, high) in enumerate(itertools.pairwise(starts.tolist())):
        q, k, v = qkv[low:high].transpose(0, 2).unbind(1)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        mask = kept(row, high - low, blocks, keys, p)
        outputs.append(((weights * mask * Drop.of(p).scale) @ v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_output_gradient_and_sums_are_those_of_softmax_attention(p) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    tokens = sum(LENGTHS)
    qkv = torch.randn(tokens, 3, HEADS, WIDTH, generator=generator)
    upstream = torch.randn(tokens, HEADS, WIDTH, generator=generator)
    torch.manual_seed(1)
    [keys] = draw_keys(1, torch.device("cpu"))
    exact = qkv.double().requires_grad_()
    want = attend_exactly(exact, starts, p, keys)
    [want_gradient] = torch.autograd.grad(want, exact, upstream.double())
    want = want.detach()

    arguments = (starts, max(LENGTHS), p, keys)
    attended = long_rows.attend_long_rows(qkv, *arguments)
    gradient, sums = long_rows.attend_long_rows_backward(upstream, qkv, attended, *arguments)
    assert float((attended.output.double() - want).norm() / want.norm()) < 1e-6
    assert float((gradient.double() - want_gradient).norm() / want_gradient.norm()) < 1e-6
    want_sums = want_gradient.sum(0).flatten()
    assert float((sums.double().sum(0) - want_sums).norm() / want_sums.norm()) < 1e-6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # gradients that are not stored overflow
@pytest.mark.parametrize("score", [-20.0, 0.0, 20.0])
def test_gradients_in_fp16_are_finite_however_low_the_scores_are(score: float) -> None:
    """A key that is not there has a score of 0: more than every real one, where those are low."""
    length, width = 100, 64
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(length, 3, HEADS, width, generator=generator) / 8
    qkv[:, :2, :, 0] = math.sqrt(abs(score)) * width**0.25
    qkv[:, 1, :, 0] *= math.copysign(1.0, score)
    qkv = qkv.half()
    upstream = torch.randn(length, HEADS, width, generator=generator).half()
    starts = torch.tensor([0, length], dtype=torch.int32)
    [keys] = draw_keys(1, torch.device("cpu"))
    exact = qkv.double().requires_grad_()
    want = attend_exactly(exact, starts, 0.0, keys)
    [want] = torch.autograd.grad(want, exact, upstream.double())
    attended = long_rows.attend_long_rows(qkv, starts, length, 0.0, keys)
    found, sums = long_rows.attend_long_rows_backward(
        upstream, qkv, attended, starts, length, 0.0, keys
    )
    assert bool(sums.isfinite().all())
    assert float((found.double() - want).norm() / want.norm()) < 2e-3


@pytest.mark.parametrize("lengths", [[140, 20], [70, 20]], ids=["long", "short, small GPU"])
def test_a_layer_of_long_rows_is_that_of_its_modules(lengths, monkeypatch) -> None:
    """Through the fused layer: output, and the gradients of its input and of its biases.

    A GPU with little shared memory takes the kernels for long rows for short ones too.
    """
    if max(lengths) <= LONGEST_ROW:
        monkeypatch.setattr(fused_layer, "is_large_enough", lambda device: False)
    torch.manual_seed(0)
    model = BertForPreTraining(replace(CONFIG, max_position_embeddings=256), 101).train()
    layer = model.bert.encoder.layer[0]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    hidden = torch.randn(sum(lengths), CONFIG.hidden_size)
    upstream = torch.randn_like(hidden)

    def results(kernel: str) -> list[Tensor]:
        layout = RowLayout(cu_seqlens=starts, max_seqlen=max(lengths), kernel=kernel)
        wanted = [hidden.clone().requires_grad_(), *layer.parameters()]
        output = layer(wanted[0], layout, None)
        return [output.detach(), *torch.autograd.grad(output, wanted, upstream)]

    want = results("padded")
    calls = []
    backward = fused_layer.attend_long_rows_backward
    monkeypatch.setattr(
        fused_layer, "attend_long_rows_backward", lambda *a: calls.append(1) or backward(*a)
    )
    fused_layer.fuse_layers(model)
    for found, exact in zip(results("flash"), want, strict=True):
        # A key's bias changes no softmax: its gradient is 0 up to rounding.
        assert float((found - exact).norm()) < 3e-6 * max(1.0, float(exact.norm()))
    assert calls == [1]


@pytest.mark.parametrize(
    ("asked", "package", "longest"),
    [("auto", None, 512), ("auto", "FA3", 128), ("flash", None, 0), ("fa3", "FA3", 0)],
)
def test_longer_rows_are_left_to_the_flash_operator(asked, package, longest) -> None:
    model = BertForPreTraining(CONFIG, 101).train()
    assert fused_layer.longest_own_row(asked, package) == longest
    assert fused_layer.fuse_layers(model, longest) == longest
