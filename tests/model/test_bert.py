"""Ours against transformers' BERT: logits, losses and every gradient, in float32."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bertds.errors import ConfigError
from bertds.model.bert import BertForPreTraining
from tests.support.padded_rows import flatten_padded

RELATIVE = 1e-5


def relative_error(found: torch.Tensor, expected: torch.Tensor, scale: float = 0.0) -> float:
    size = max(expected.abs().max().item(), scale)
    return (found - expected).abs().max().item() / size


def mean_loss(output, batch, with_nsp: bool = True):
    loss = output.mlm_loss_sum / batch.masked_tokens
    return loss + output.nsp_loss_sum / len(batch.input_ids) if with_nsp else loss


def assert_same_gradients(ours, reference_gradients) -> None:
    """Compare each tensor relative to its own largest element."""
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert list(found) == list(reference_gradients)
    for name, expected in reference_gradients.items():
        # A key bias moves all scores of a query alike, so its true gradient is 0 and only
        # rounding is seen: judge it by the size of the query bias's.
        scale = 0.0
        if name.endswith("key.bias"):
            scale = found[name.replace("key", "query")].abs().max().item()
        gradient = found[name]
        real, padded = gradient[: len(expected)], gradient[len(expected) :]
        assert relative_error(real, expected, scale) < RELATIVE, name
        assert not padded.any(), f"{name}: a padded vocabulary row has a gradient"


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_losses_and_every_gradient_equal_transformers(tiny, batch, pair_of, hidden_act) -> None:
    ours, reference = pair_of(replace(tiny, hidden_act=hidden_act))
    expected = reference(**vars(batch))
    expected.loss.backward()
    logits = expected.prediction_logits[batch.labels != -100]
    labels = batch.labels[batch.labels != -100]
    mlm_loss = torch.nn.functional.cross_entropy(logits, labels)
    nsp_loss = torch.nn.functional.cross_entropy(
        expected.seq_relationship_logits, batch.next_sentence_label
    )

    output = ours(**batch.ours())
    mean_loss(output, batch).backward()

    assert output.mlm_loss_sum.item() / len(labels) == pytest.approx(mlm_loss.item(), rel=RELATIVE)
    assert output.nsp_loss_sum.item() / 6 == pytest.approx(nsp_loss.item(), rel=RELATIVE)
    assert output.mlm_correct == (logits.argmax(-1) == labels).sum()
    nsp_right = expected.seq_relationship_logits.argmax(-1) == batch.next_sentence_label
    assert output.nsp_correct == nsp_right.sum()
    assert_same_gradients(ours, gradients_of(reference))


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new"])
def test_logits_and_hidden_states_equal_transformers(
    tiny, batch, pair_of, vocab_size, hidden_act
) -> None:
    ours, reference = pair_of(replace(tiny, hidden_act=hidden_act))
    inputs = {name: value for name, value in vars(batch).items() if "label" not in name}
    expected = reference(**inputs, output_hidden_states=True)
    flat = flatten_padded(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    arguments = flat[:5]
    hidden, pooled = ours.encode(*arguments)
    everywhere = torch.arange(len(flat.input_ids))
    mlm_logits, nsp_logits = ours.logits(*arguments, positions=everywhere)

    real = batch.attention_mask.bool()
    assert mlm_logits.shape == (int(real.sum()), vocab_size)
    assert relative_error(hidden, expected.hidden_states[-1][real]) < RELATIVE
    assert relative_error(mlm_logits, expected.prediction_logits[real]) < RELATIVE
    assert relative_error(nsp_logits, expected.seq_relationship_logits) < RELATIVE
    pooled_reference = reference.bert(**inputs).pooler_output
    assert relative_error(pooled, pooled_reference) < RELATIVE


def test_the_two_gelus_differ_by_more_than_the_tolerance(tiny, batch, pair_of) -> None:
    """Or the tests above would not report them apart."""
    flat = flatten_padded(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    erf, tanh = (
        pair_of(replace(tiny, hidden_act=act))[0].encode(*flat[:5])[0]
        for act in ("gelu", "gelu_new")
    )
    assert relative_error(erf, tanh) > 10 * RELATIVE


def test_masked_lm_only_equals_bert_for_masked_lm(tiny, batch, pair_of) -> None:
    ours, reference = pair_of(replace(tiny, next_sentence=False))
    inputs = {k: v for k, v in vars(batch).items() if k != "next_sentence_label"}
    expected = reference(**inputs)
    expected.loss.backward()
    output = ours(**batch.ours(with_nsp=False))
    mean_loss(output, batch, with_nsp=False).backward()
    loss = output.mlm_loss_sum.item() / batch.masked_tokens
    assert loss == pytest.approx(expected.loss.item(), rel=RELATIVE)
    assert output.nsp_loss_sum == 0
    assert_same_gradients(ours, gradients_of(reference))


def test_recomputing_activations_changes_nothing(tiny, batch, pair_of) -> None:
    """With dropout: the recomputed layer must drop the same elements."""
    dropping = replace(tiny, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    results = []
    for mode in ("none", "full"):
        ours, _ = pair_of(replace(dropping, activation_checkpointing=mode))
        torch.manual_seed(11)
        output = ours.train()(**batch.ours())
        mean_loss(output, batch).backward()
        results.append((output, gradients_of(ours)))
    (plain, plain_gradients), (recomputed, recomputed_gradients) = results
    assert all(torch.equal(a, b) for a, b in zip(plain[:4], recomputed[:4], strict=True))
    assert all(torch.equal(g, recomputed_gradients[n]) for n, g in plain_gradients.items())


@pytest.mark.parametrize("cuts", [[0, 3, 6], [0, 1, 2, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_sums_over_micro_batches_equal_the_whole(pair, batch, cuts) -> None:
    ours, _ = pair
    whole = ours(**batch.ours())
    mean_loss(whole, batch).backward()
    expected = gradients_of(ours)
    ours.zero_grad()
    parts = []
    for start, stop in pairwise(cuts):
        output = ours(**batch.rows(start, stop).ours())
        mean_loss(output, batch).backward()  # divided by the counts of the whole
        parts.append(output)
    for name in whole._fields[:4]:
        total = sum(getattr(part, name).item() for part in parts)
        assert total == pytest.approx(getattr(whole, name).item(), rel=RELATIVE)
    assert_same_gradients(ours, {n: _real_rows(n, g) for n, g in expected.items()})


def _real_rows(name: str, gradient: torch.Tensor) -> torch.Tensor:
    vocabulary = "word_embeddings" in name or name == "cls.predictions.bias"
    return gradient[:101] if vocabulary else gradient


def test_a_micro_batch_without_masked_tokens_gives_each_parameter_a_gradient(pair, batch) -> None:
    ours, _ = pair
    arguments = batch.ours()
    arguments["masked_lm_positions"] = arguments["masked_lm_positions"][:0]
    arguments["masked_lm_ids"] = arguments["masked_lm_ids"][:0]
    output = ours(**arguments)
    (output.mlm_loss_sum + output.nsp_loss_sum).backward()
    assert output.mlm_loss_sum == 0
    assert output.mlm_correct == 0
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert not ours.cls.predictions.transform.dense.weight.grad.any()
    assert ours.bert.encoder.layer[0].output.dense.weight.grad.any()  # from the pairs


def test_without_labels_the_next_sentence_head_gets_a_zero_gradient(pair, batch) -> None:
    ours, _ = pair
    output = ours(**batch.ours(with_nsp=False))
    (output.mlm_loss_sum + output.nsp_loss_sum).backward()
    assert output.nsp_loss_sum == 0
    gradient = ours.cls.seq_relationship.weight.grad
    assert gradient is not None
    assert not gradient.any()


def test_word_table_and_decoder_are_one_parameter(pair) -> None:
    ours, reference = pair
    assert ours.cls.predictions.decoder.weight is ours.bert.embeddings.word_embeddings.weight
    assert ours.cls.predictions.decoder.bias is ours.cls.predictions.bias
    names = [name for name, _ in ours.named_parameters()]
    assert names == [name for name, _ in reference.named_parameters()]


def test_initial_weights_are_a_normal_cut_at_two_deviations(tiny) -> None:
    torch.manual_seed(0)
    config = replace(tiny, hidden_size=128, initializer_range=0.02)
    model = BertForPreTraining(config, 5000)
    table = model.bert.embeddings.word_embeddings.weight
    assert table.shape[0] == 5056
    assert not table[5000:].any()
    real = table[:5000]
    assert real.abs().max() <= 0.04
    # The deviation of a standard normal cut at 2 is 0.8796.
    assert real.std().item() == pytest.approx(0.02 * 0.8796, rel=0.01)
    assert real.mean().item() == pytest.approx(0.0, abs=2e-4)
    for name, parameter in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std() > 0.015, name


def test_heads_that_do_not_divide_the_width_are_refused(tiny) -> None:
    with pytest.raises(ConfigError, match=r"num_attention_heads=5 does not divide"):
        BertForPreTraining(replace(tiny, num_attention_heads=5), 101)


def test_bfloat16_stays_close_to_float32(pair, batch) -> None:
    ours, _ = pair
    expected = ours(**batch.ours())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = ours(**batch.ours())
    mean_loss(autocast, batch).backward()
    assert autocast.mlm_loss_sum.dtype == torch.float32
    assert autocast.mlm_loss_sum.item() == pytest.approx(expected.mlm_loss_sum.item(), rel=0.03)
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    low = ours.to(torch.bfloat16)(**batch.ours())
    assert low.mlm_loss_sum.dtype == torch.float32
    assert low.mlm_loss_sum.item() == pytest.approx(expected.mlm_loss_sum.item(), rel=0.03)
