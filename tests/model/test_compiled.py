"""Compiled layers and recorded shapes: the same numbers, and nothing compiled twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from bertds.model import compile_layers as compiling
from bertds.model.bert import BertForPreTraining
from bertds.model.compile_layers import compile_layers
from bertds.model.cuda_graphs import MAX_SHAPES, use_graphs
from bertds.model.row_layout import RowLayout


def loss_and_gradients(model, inputs):
    model.zero_grad()
    output = model(**inputs)
    (output.mlm_loss_sum + output.nsp_loss_sum).backward()
    return output.mlm_loss_sum.detach(), [p.grad.clone() for p in model.parameters()]


def fresh(config, vocab_size):
    torch.manual_seed(0)
    return BertForPreTraining(config, vocab_size)


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


SHAPES = [(0, 6), (0, 3), (2, 6), (1, 5), (3, 6)]


def check_parity_and_recompilations(config, vocab_size, batch, backend, graphs_of_layers) -> None:
    plain, compiled_one = fresh(config, vocab_size), fresh(config, vocab_size)
    assert compile_layers(compiled_one, "cpu", backend=backend)
    assert list(plain.state_dict()) == list(compiled_one.state_dict())
    graphs = []
    for rows in SHAPES:
        inputs = batch.rows(*rows).ours()
        want, gradients = loss_and_gradients(plain, inputs)
        found, others = loss_and_gradients(compiled_one, inputs)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
        for left, right in zip(gradients, others, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    # All layers share their graphs, and no other number of tokens or rows asks for another.
    assert graphs == [graphs_of_layers] * len(SHAPES)
    assert not counters["graph_break"]


def test_a_cpu_compiles_two_regions_of_each_layer(tiny, vocab_size, batch) -> None:
    check_parity_and_recompilations(tiny, vocab_size, batch, "aot_eager", 2)


def test_a_whole_layer_is_one_graph_with_attention_inside(tiny, vocab_size, batch) -> None:
    """As on a GPU, with the kernel that runs everywhere; gradients equal the uncompiled ones."""
    padded = replace(tiny, attention_kernel="padded")
    check_parity_and_recompilations(padded, vocab_size, batch, "aot_eager", 1)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "graphs"), [("auto", 2), ("padded", 1)])
def test_inductor_gives_the_same_numbers(tiny, vocab_size, batch, kernel, graphs) -> None:
    if compiling.missing_compiler("cpu"):
        pytest.skip("no C++ compiler")
    config = replace(tiny, attention_kernel=kernel)
    check_parity_and_recompilations(config, vocab_size, batch, "inductor", graphs)


def test_compiled_dropout_follows_the_seed_and_the_probability(tiny, vocab_size, batch) -> None:
    model = fresh(replace(tiny, hidden_dropout_prob=0.3), vocab_size)
    compile_layers(model, "cpu", backend="aot_eager")
    inputs = batch.ours()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(loss_and_gradients(model, inputs)[0]))
    assert losses[0] == losses[1] != losses[2]


def test_without_a_compiler_the_model_stays_as_it_is(tiny, vocab_size, monkeypatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none_found():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    said = []
    monkeypatch.setattr(compiling.log, "warning", lambda text, *more: said.append(text % more))
    model = fresh(tiny, vocab_size)
    assert not compile_layers(model, "cpu")
    assert len(said) == 1 and "no C++ compiler found" in said[0]
    assert "feed_forward" not in vars(model.bert.encoder.layer[0])


# -- recorded shapes ----------------------------------------------------------------------------


def test_each_shape_is_recorded_once_and_rare_ones_are_not(tiny, vocab_size) -> None:
    """The recorder replaces CUDA's: it counts, and computes as usual."""
    encoder = fresh(tiny, vocab_size).bert.encoder
    recorded = []

    def record(function, sample):
        recorded.append(tuple(sample[0].shape))
        assert sample[0].requires_grad and not sample[1].requires_grad
        return function

    graphed = use_graphs(encoder, record)
    generator = torch.Generator().manual_seed(1)
    for tokens in [12, 20, 12, 12, 28, 36, 44, 52, 12, 20]:
        layout = RowLayout(
            cu_seqlens=torch.tensor([0, 5, tokens], dtype=torch.int32), max_seqlen=48
        )
        hidden = torch.randn(tokens, 32, generator=generator)
        want = type(encoder).forward(encoder, hidden, layout)
        assert torch.equal(encoder(hidden, layout), want)
    assert [shape[0] for shape in recorded] == [12, 20, 28, 36]
    assert graphed.shapes == MAX_SHAPES
    encoder.eval()
    encoder(torch.randn(9, 32), RowLayout(cu_seqlens=torch.tensor([0, 9]), max_seqlen=9))
    assert graphed.shapes == MAX_SHAPES


def leaves_of(tensor) -> set[int]:
    """The leaves that a graph accumulates into, by identity."""
    found, waiting, seen = set(), [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [edge for edge, _ in node.next_functions]
    return found


def test_what_is_recorded_holds_no_parameter_of_the_model(tiny, vocab_size) -> None:
    """Else its accumulation node would stay on the recording's stream, as torch warns."""
    encoder = fresh(tiny, vocab_size).bert.encoder
    parameters = list(encoder.parameters())
    samples = []

    def record(function, sample):
        output = function(*sample)
        assert leaves_of(output) == {id(tensor) for tensor in (sample[0], *sample[2:])}
        samples.append(sample)
        return function

    use_graphs(encoder, record)
    layout = RowLayout(cu_seqlens=torch.tensor([0, 5, 12], dtype=torch.int32), max_seqlen=7)
    output = encoder(torch.randn(12, 32), layout)
    [(_, _, *stand_ins)] = samples
    for parameter, stand_in in zip(parameters, stand_ins, strict=True):
        assert stand_in is not parameter and stand_in.data_ptr() == parameter.data_ptr()
    # A pass in training reaches the parameters, and with gradients of their own.
    assert leaves_of(output) == {id(parameter) for parameter in parameters}
    with torch.no_grad():
        parameters[0].mul_(1.5)  # an update reaches the recording: its memory is the same
    assert torch.equal(stand_ins[0], parameters[0])


def record_with_static_memory(function, sample):
    """As CUDA's recorder: every backward pass leaves its gradients in the same tensors."""
    static: list[torch.Tensor] = []

    class Replayed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, cu_seqlens, *parameters):
            for place, value in zip(sample, (hidden, cu_seqlens, *parameters), strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.data.copy_(value)
            with torch.enable_grad():
                ctx.output = function(*sample)
            return ctx.output.detach()

        @staticmethod
        def backward(ctx, upstream):
            found = torch.autograd.grad(ctx.output, (sample[0], *sample[2:]), upstream)
            if not static:
                static.extend(torch.empty_like(gradient) for gradient in found)
            for place, gradient in zip(static, found, strict=True):
                place.copy_(gradient)
            first, *rest = (place.detach() for place in static)
            return first, None, *rest

    return Replayed.apply


@pytest.mark.parametrize("zeroed_in_place", [False, True])
def test_gradients_of_replays_add_up(tiny, vocab_size, batch, zeroed_in_place) -> None:
    """Over micro-batches, and where gradients are zeroed in place between them (DeepSpeed's)."""
    plain, graphed = (fresh(tiny, vocab_size).bert.encoder for _ in range(2))
    use_graphs(graphed, record_with_static_memory)
    layout = RowLayout(cu_seqlens=torch.tensor([0, 5, 12], dtype=torch.int32), max_seqlen=7)
    sums = [[torch.zeros_like(p) for p in plain.parameters()] for _ in range(2)]
    for seed in range(3):
        hidden = torch.randn(12, 32, generator=torch.Generator().manual_seed(seed))
        for encoder, total in zip((plain, graphed), sums, strict=True):
            leaf = hidden.clone().requires_grad_()
            encoder(leaf, layout).square().sum().backward()
            if zeroed_in_place:
                for place, parameter in zip(total, encoder.parameters(), strict=True):
                    place += parameter.grad
                    parameter.grad.zero_()
    for index, parameters in enumerate(zip(plain.parameters(), graphed.parameters(), strict=True)):
        pair = [total[index] for total in sums] if zeroed_in_place else [p.grad for p in parameters]
        torch.testing.assert_close(pair[1], pair[0])
