"""The chunked loss equals torch's cross-entropy on whole logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from bertds.model import losses

REAL, PADDED, WIDTH = 75, 128, 16


def inputs(count: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(count, WIDTH, generator=generator)
    weight = torch.randn(PADDED, WIDTH, generator=generator)
    bias = torch.randn(PADDED, generator=generator)
    labels = torch.randint(0, REAL, (count,), generator=generator)
    leaves = [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)]
    return leaves, labels


@pytest.mark.parametrize("chunk", [1000, 64, 7])
def test_loss_count_and_gradients_equal_torch(monkeypatch, chunk) -> None:
    monkeypatch.setattr(losses, "tokens_per_chunk", lambda *_: chunk)
    leaves, labels = inputs(150)
    hidden, weight, bias = leaves
    logits = F.linear(hidden, weight[:REAL], bias[:REAL])
    expected = F.cross_entropy(logits, labels, reduction="sum")
    # A factor upstream, as the engine's division by the global count is one.
    expected_gradients = torch.autograd.grad(expected * 0.37, leaves)
    loss, correct = losses.linear_cross_entropy(*leaves, labels, REAL)
    gradients = torch.autograd.grad(loss * 0.37, leaves)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert correct == (logits.argmax(1) == labels).sum()
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_plain_way_gives_the_same() -> None:
    leaves, labels = inputs(40)
    loss, correct = losses.linear_cross_entropy(*leaves, labels, REAL)
    plain_loss, plain_correct = losses.plain_cross_entropy(*leaves, labels, REAL)
    assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-6)
    assert correct == plain_correct
    for found, wanted in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(plain_loss, leaves), strict=True
    ):
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("chunk", [1000, 16])
def test_half_precision_keeps_the_loss_scale_in_small_gradients(monkeypatch, chunk) -> None:
    """fp16 cannot hold a probability below 6e-8; scaled by 2^16 it can."""
    monkeypatch.setattr(losses, "tokens_per_chunk", lambda *_: chunk)
    leaves, labels = inputs(32, torch.float16)
    leaves[2].data[5] = -16.0  # a word of probability about 1e-8 everywhere
    leaves[1].data[5] = 0.0
    labels[labels == 5] = 6
    loss, _ = losses.linear_cross_entropy(*leaves, labels, REAL)
    assert loss.dtype == torch.float32
    bias_gradient = torch.autograd.grad(loss * 2.0**16, leaves)[2]
    assert bias_gradient[5] > 0
    assert not bias_gradient[REAL:].any()


def test_no_masked_token_gives_zero_loss_and_zero_gradients() -> None:
    leaves, labels = inputs(0)
    loss, correct = losses.linear_cross_entropy(*leaves, labels, REAL)
    assert loss == 0
    assert correct == 0
    gradients = torch.autograd.grad(loss, leaves)
    assert all(not g.any() and g.shape == t.shape for g, t in zip(gradients, leaves, strict=True))


def test_without_gradients_none_is_computed() -> None:
    leaves, labels = inputs(20)
    with torch.no_grad():
        loss, _ = losses.linear_cross_entropy(*leaves, labels, REAL)
    assert not loss.requires_grad
    expected = F.cross_entropy(F.linear(*leaves)[:, :REAL], labels, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_bfloat16_gradients_have_the_parameters_dtype_and_value() -> None:
    leaves, labels = inputs(60, torch.bfloat16)
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    loss, _ = losses.linear_cross_entropy(*leaves, labels, REAL)
    expected = F.cross_entropy(F.linear(*exact)[:, :REAL], labels, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for found, wanted in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, exact), strict=True
    ):
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_chunks_are_added_up_in_float32(monkeypatch) -> None:
    """In bfloat16, whose steps are 0.4%, most of 600 small parts would be rounded away."""
    leaves, labels = inputs(600, torch.bfloat16)
    gradients = []
    for chunk in (1000, 1):
        monkeypatch.setattr(losses, "tokens_per_chunk", lambda *_, most=chunk: most)
        loss, _ = losses.linear_cross_entropy(*leaves, labels, REAL)
        gradients.append(torch.autograd.grad(loss, leaves[1:]))
    for whole, summed in zip(*gradients, strict=True):
        assert (summed - whole).float().norm() < 5e-3 * whole.float().norm()


def test_a_second_backward_is_refused() -> None:
    leaves, labels = inputs(5)
    loss, _ = losses.linear_cross_entropy(*leaves, labels, REAL)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


def test_chunks_hold_at_most_the_stated_bytes() -> None:
    assert losses.tokens_per_chunk(30_528) * 30_528 * 4 <= losses.CHUNK_BYTES
    assert losses.tokens_per_chunk(10**9) == 64


@pytest.mark.parametrize("chunk", [1000, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_z_loss_joins_the_gradient_and_not_the_value(monkeypatch, chunk, dtype) -> None:
    monkeypatch.setattr(losses, "tokens_per_chunk", lambda *_: chunk)
    leaves, labels = inputs(150, dtype)
    labels[::7] = -100  # fillers
    hidden, weight, bias = leaves
    logits = F.linear(hidden, weight[:REAL], bias[:REAL]).float()
    cross_entropy = F.cross_entropy(logits, labels, reduction="sum")
    squares = torch.logsumexp(logits, -1)[labels >= 0].square().sum()
    wanted = torch.autograd.grad((cross_entropy + 0.1 * squares) * 0.37, leaves)
    loss, _ = losses.linear_cross_entropy(*leaves, labels, REAL, 0.1)
    found = torch.autograd.grad(loss * 0.37, leaves)
    assert loss.item() == pytest.approx(cross_entropy.item(), rel=1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < (1e-5 if dtype == torch.float32 else 1e-2) * (
            other.abs().max()
        )


@pytest.mark.parametrize("z_weight", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1000, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_of_words_join_the_gradient_and_not_the_value(
    monkeypatch, chunk, dtype, z_weight
) -> None:
    monkeypatch.setattr(losses, "tokens_per_chunk", lambda *_: chunk)
    leaves, labels = inputs(150, dtype)
    labels[::7] = -100  # fillers
    weights = torch.linspace(0.25, 3.0, REAL)
    hidden, weight, bias = leaves
    logits = F.linear(hidden, weight[:REAL], bias[:REAL]).float()
    each = F.cross_entropy(logits, labels, reduction="none")
    trained = each + z_weight * torch.logsumexp(logits, -1).square()
    trained = (trained * weights[labels.clamp_min(0)])[labels >= 0].sum()
    wanted = torch.autograd.grad(trained * 0.37, leaves, retain_graph=True)
    loss, _ = losses.linear_cross_entropy(*leaves, labels, REAL, z_weight, weights)
    found = torch.autograd.grad(loss * 0.37, leaves)
    assert loss.item() == pytest.approx(each.sum().item(), rel=1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < (1e-5 if dtype == torch.float32 else 1e-2) * (
            other.abs().max()
        )


def test_the_recipe_sets_the_weight_of_both_styles() -> None:
    from bertds.config.recipe import ModelConfig
    from bertds.model.build import build_model

    for style in ("bert", "modern"):
        config = ModelConfig(
            style=style,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            next_sentence=False,
            z_loss=1e-3,
        )
        decoders = [m for m in build_model(config, 50).modules() if type(m).__name__ == "Decoder"]
        assert [decoder.z_weight for decoder in decoders] == [1e-3]


# -- the kernel of a GPU, in Triton's interpreter ------------------------------------------------


@pytest.fixture
def kernel(monkeypatch):
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("needs TRITON_INTERPRET=1")
    from bertds.model.kernels import cross_entropy

    monkeypatch.setattr(cross_entropy, "BLOCK", 32)  # three blocks, the last of them half full
    return lambda: monkeypatch.setattr(losses, "kernels_run_on", lambda device_type: True)


@pytest.mark.parametrize("chunk", [1000, 7])
@pytest.mark.parametrize("more", [{}, {"z_weight": 0.1}, {"word_weights_K": torch.rand(REAL)}])
def test_the_kernel_gives_the_same(monkeypatch, kernel, chunk, more) -> None:
    monkeypatch.setattr(losses, "tokens_per_chunk", lambda *_: chunk)
    leaves, labels = inputs(20)
    labels[3] = -100  # a filler
    leaves[2].data[REAL:] = 50.0  # what a padded word's logit would be must not matter
    results = []
    for with_kernel in (False, True):
        if with_kernel:
            kernel()
        loss, correct = losses.linear_cross_entropy(*leaves, labels, REAL, **more)
        results.append((loss, correct, *torch.autograd.grad(loss * 0.37, leaves)))
    (loss, correct, *gradients), (their_loss, their_correct, *their_gradients) = results
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-6) and correct == their_correct
    for found, wanted in zip(gradients, their_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert not found[REAL:].any() or found.shape[0] == 20


def test_the_kernel_takes_the_first_of_equal_words_and_far_logits(kernel) -> None:
    kernel()
    logits = torch.full((3, PADDED), -3e4)
    logits[0, [40, 7]] = 2.0  # equal ones, in two blocks
    logits[1, 70] = 3e4
    logits[2] = 0.0
    for label, hit, loss in [(7, True, 0.6931472), (40, False, 0.6931472)]:
        identity = torch.eye(PADDED)
        found, correct = losses.linear_cross_entropy(
            logits[:1], identity, torch.zeros(PADDED), torch.tensor([label]), REAL
        )
        assert found.item() == pytest.approx(loss) and bool(correct) == hit
    found, correct = losses.linear_cross_entropy(
        logits[1:], torch.eye(PADDED), torch.zeros(PADDED), torch.tensor([70, 0]), REAL
    )
    assert found.item() == pytest.approx(math.log(REAL)) and correct == 2
