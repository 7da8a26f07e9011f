"""LAMB against a textbook, on given gradients and any cut of the tensors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertds.optim.lamb import ShardedLamb
from bertds.optim.lamb_coefficients import StepNumbers
from bertds.optim.lamb_cpu import BLOCK, CpuLamb
from bertds.optim.partition import Partition, Slice
from bertds.optim.weight_decay import is_decayed
from tests.support.tensor_cuts import (
    NUMBERS,
    SHAPES,
    distance,
    make,
    partitions_of,
    random_tensors,
    start_weights,
    textbook,
    train,
)


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("variant", ["nvidia", "deepspeed", "paper"])
def test_fifty_steps_equal_the_textbook(variant: str, bias_correction: bool) -> None:
    parts = partitions_of(start_weights(), [200, 17_000])
    optimizer = make(parts, variant, bias_correction=bias_correction)
    found = train(parts, optimizer, 50)
    want, ratios = textbook(variant, 50, bias_correction=bias_correction)
    assert distance(found, want) < 1e-6
    assert optimizer.trust_ratios() == pytest.approx(ratios, rel=1e-6)


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 31_000), max_size=5))
def test_any_division_of_the_tensors_gives_the_same_result(cuts: list[int]) -> None:
    parts = partitions_of(start_weights(), cuts)
    found = train(parts, make(parts, "paper"), 4)
    assert distance(found, textbook("paper", 4)[0]) < 5e-7


def test_one_ratio_for_everything_would_be_wrong() -> None:
    parts = partitions_of(start_weights(), [])
    whole = [Slice("dense.weight", 0, 0, parts[0].tensor.numel() - 3)]
    naive = make([Partition(tensor=parts[0].tensor, slices=whole)], "paper")
    found = train(parts, naive, 10)
    want, _ = textbook("paper", 10)
    start = start_weights()
    moved = {n: float((want[n] - start[n]).norm()) for n in want}
    wrong = {n: float((found[n].double() - want[n].reshape(-1)).norm()) / moved[n] for n in want}
    assert max(wrong.values()) > 0.2


def test_a_hand_worked_ratio() -> None:
    # w = (3, 4), g = (1, -1), no decay, one step: m^/sqrt(v^) = (1, -1), |w| / |u| = 5 / sqrt(2)
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = ShardedLamb(
        [parameter], lr=0.1, eps=0.0, weight_decay=0.0, variant="nvidia", is_decayed=is_decayed
    )
    optimizer.bind([Partition(tensor=parameter, slices=[Slice("a.weight", 0, 0, 2)])], ["a.weight"])
    parameter.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    ratio = 5 / math.sqrt(2)
    assert optimizer.trust_ratios()["a.weight"] == pytest.approx(ratio, rel=1e-6)
    assert parameter.tolist() == pytest.approx([3 - 0.1 * ratio, 4 + 0.1 * ratio], rel=1e-6)
    assert optimizer.trust_ratio_summary() == {"decay": (pytest.approx(ratio),) * 3}


def test_ratio_is_one_for_a_tensor_of_zeros_and_clamped_where_asked() -> None:
    parts = partitions_of(start_weights(), [])
    optimizer = make(parts, "deepspeed", max_coeff=0.3)
    train(parts, optimizer, 1)
    ratios = optimizer.trust_ratios()
    assert ratios["zero.weight"] == 1.0  # not clamped: DeepSpeed's kernel leaves it alone
    assert ratios["dense.weight"] == pytest.approx(0.3)


def test_the_ratio_is_one_where_nothing_is_to_change() -> None:
    """|w| / 0 would be infinite, and infinity times a zero update no number."""
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = ShardedLamb([parameter], lr=0.1, weight_decay=0.0, is_decayed=is_decayed)
    optimizer.bind([Partition(tensor=parameter, slices=[Slice("a.weight", 0, 0, 2)])], ["a.weight"])
    parameter.grad = torch.zeros(2)
    optimizer.step()
    assert parameter.tolist() == [3.0, 4.0]
    assert optimizer.trust_ratios() == {"a.weight": 1.0}


def test_ratios_of_all_sub_groups_are_reported() -> None:
    """ZeRO-3 calls ``step`` for one sub-group at a time, each with its own tensors."""
    parts = partitions_of(start_weights(), [37 * 11 + 11])  # after emb.LayerNorm.weight
    optimizer = make(parts, "paper")
    gradients = random_tensors(100)
    for part in parts:
        for each in parts:
            each.tensor.grad = torch.zeros_like(part.tensor) if each is part else None
        for piece in part.slices:
            values = gradients[piece.name].reshape(-1)
            part.tensor.grad[piece.offset : piece.offset + piece.length] = values
        optimizer.step()
    assert optimizer.trust_ratios() == pytest.approx(textbook("paper", 1)[1], rel=1e-6)


def test_norms_are_added_up_in_float64() -> None:
    """In float32, 2**24 + 1 is 2**24: the blocks after a large one would be lost."""
    blocks = 9
    parameter = torch.nn.Parameter(torch.zeros(blocks * BLOCK))
    with torch.no_grad():
        parameter[::BLOCK] = 1.0
        parameter[0] = 2.0**12
    work = CpuLamb(
        Partition(tensor=parameter, slices=[Slice("a.weight", 0, 0, blocks * BLOCK)]),
        {"a.weight": 0},
        [True],
    )
    zeros = torch.zeros(blocks * BLOCK)
    numbers = StepNumbers(0.9, 0.99, 1.0, 1.0, 1e-6, 1.0, 0.1)  # so u = w
    sums = work.update_moments(zeros, zeros.clone(), zeros.clone(), numbers)
    assert sums.tolist() == [[2.0**24 + blocks - 1]] * 2


def test_biases_are_not_decayed_and_nvidia_does_not_adapt_them() -> None:
    parts = partitions_of(start_weights(), [])
    optimizer = make(parts, "nvidia")
    train(parts, optimizer, 1)
    assert set(optimizer.trust_ratios()) == {"emb.weight", "dense.weight", "zero.weight"}
    assert set(optimizer.trust_ratio_summary()) == {"decay"}
    paper = make(partitions_of(start_weights(), []), "paper")
    assert set(paper.trust_ratio_summary()) == {"decay", "no_decay"}


def test_the_number_of_threads_changes_no_bit() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            weights = {"a.weight": torch.randn(400_000, generator=torch.Generator().manual_seed(0))}
            parameter = torch.nn.Parameter(weights["a.weight"])
            optimizer = ShardedLamb([parameter], lr=0.1, is_decayed=is_decayed)
            part = Partition(tensor=parameter, slices=[Slice("a.weight", 0, 0, 400_000)])
            optimizer.bind([part], ["a.weight"])
            for _ in range(2):
                parameter.grad = parameter.detach() * 0.5 + 0.1
                optimizer.step()
            results.append(parameter.detach().clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_step_before_bind_raises() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = ShardedLamb([parameter], lr=0.1, is_decayed=is_decayed)
    with pytest.raises(RuntimeError, match="bind"):
        optimizer.step()
    assert parameter.tolist() == [1.0, 1.0]


def test_a_parameter_without_gradient_stays() -> None:
    parts = partitions_of(start_weights(), [100])
    optimizer = make(parts, "paper")
    parts[0].tensor.grad = None
    before = parts[0].tensor.detach().clone()
    parts[1].tensor.grad = torch.ones_like(parts[1].tensor)
    optimizer.step()
    assert torch.equal(parts[0].tensor[:-3], before[:-3])


def test_pieces_that_overlap_are_empty_or_too_long_are_refused() -> None:
    tensor = torch.zeros(10)
    with pytest.raises(RuntimeError, match="overlapping"):
        Partition(tensor=tensor, slices=[Slice("a", 0, 0, 6), Slice("b", 0, 5, 2)])
    with pytest.raises(RuntimeError, match="empty piece"):
        Partition(tensor=tensor, slices=[Slice("a", 0, 0, 0)])
    with pytest.raises(RuntimeError, match="reach 12"):
        Partition(tensor=tensor, slices=[Slice("a", 0, 0, 12)])


def test_state_dict_round_trip_continues_bit_for_bit() -> None:
    parts = partitions_of(start_weights(), [100])
    optimizer = make(parts, "nvidia")
    train(parts, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    copies = [Partition(torch.nn.Parameter(p.tensor.detach().clone()), p.slices) for p in parts]
    again = ShardedLamb([p.tensor for p in copies], is_decayed=is_decayed, **NUMBERS)
    again.load_state_dict(saved)
    again.bind(copies, list(SHAPES))
    assert all(
        torch.equal(a, b)
        for a, b in zip(train(parts, optimizer, 2).values(), train(copies, again, 2).values())
    )


@pytest.mark.parametrize("variant", ["nvidia", "deepspeed", "paper"])
def test_for_a_whole_model_it_equals_the_textbook(variant: str) -> None:
    """Nothing is bound by hand; state is saved and loaded as torch's optimizers do."""

    def model_of(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
        model = torch.nn.Module()
        for name, weight in weights.items():
            owner, _, leaf = name.rpartition(".")
            here = model
            for part in owner.split("."):
                if part not in dict(here.named_children()):
                    here.add_module(part, torch.nn.Module())
                here = here.get_submodule(part)
            here.register_parameter(leaf, torch.nn.Parameter(weight.clone()))
        return model

    def step(model: torch.nn.Module, optimizer: ShardedLamb, number: int) -> None:
        gradients = random_tensors(100 + number)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        optimizer.step()

    model = model_of(start_weights())
    optimizer = ShardedLamb.for_model(model, variant=variant, **NUMBERS)
    for number in range(3):
        step(model, optimizer, number)
    other = model_of({name: p.detach() for name, p in model.named_parameters()})
    resumed = ShardedLamb.for_model(other, variant=variant, **NUMBERS)
    resumed.load_state_dict(optimizer.state_dict())
    for number in range(3, 6):
        step(other, resumed, number)
    found = {name: p.detach().reshape(-1) for name, p in other.named_parameters()}
    want, ratios = textbook(variant, 6)
    assert distance(found, want) < 1e-6
    assert resumed.trust_ratios() == pytest.approx(ratios, rel=1e-6)


def test_a_scheduler_of_torchs_moves_the_learning_rate() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = ShardedLamb.for_model(model, lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.25
