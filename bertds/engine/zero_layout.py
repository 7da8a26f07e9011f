"""Locates each tensor's master weights in DeepSpeed. The only module that reads its internals.

Written for and tested with DeepSpeed 0.19.8. It relies on these facts, and checks what it can:

====================== ==========================================================================
all stages             ``engine.optimizer`` wraps our optimizer (``.optimizer``); its ``step`` is
                       called with gradients that are averaged, unscaled and clipped, in float32,
                       on the very tensors listed below.
stage 0, float32       the parameters themselves are the masters.
stages 1, 2            ``DeepSpeedZeroOptimizer``: group i is the concatenation of the tensors
                       ``round_robin_bit16_groups[i]`` at ``round_robin_bit16_offsets[i]``, cut
                       into equal parts of ``partition_size[i]``; the rank's part is
                       ``single_partition_of_fp32_groups[i]``. ``update_lp_params`` copies the
                       masters to the weights and gathers them. ``step`` is called per group.
stage 1, bf16,         ``BF16_Optimizer``: ``bf16_groups[i]`` concatenated without gaps; the
float32 accumulation   rank's part is ``fp32_groups_flat_partition[i]``. After each backward pass
                       ``update_hp_grads`` adds the parameters' gradients to
                       ``fp32_groups_gradients[i][j]`` and notes it in
                       ``fp32_groups_has_gradients[i][j]``; nothing reads them afterwards.
stage 3                ``DeepSpeedZeroOptimizer_Stage3``: every tensor is cut into equal parts of
                       ``ds_tensor.ds_numel`` elements; the rank's parts of the tensors of
                       sub-group s, ``fp16_groups[s]``, are one after the other in
                       ``fp32_partitioned_groups_flat[s]``. The tail of the last part is padding
                       of *uninitialized* memory. ``step`` is called per sub-group.
====================== ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from bertds.errors import BertdsError
from bertds.optim.partition import Partition, Slice

DeepSpeedObject = Any
"""An engine or a ZeRO wrapper of DeepSpeed, which ships no types."""

TESTED_VERSIONS = ("0.19.8",)


@dataclass(slots=True)
class Layout:
    """All trainable tensors of the model as this rank sees them."""

    kind: str
    """stage0 | zero12 | bf16 | zero3"""
    partitions: list[Partition]
    """The parts that this rank updates."""
    numels: dict[str, int]
    """Number of elements of every trainable tensor, in the model's order."""
    frozen: dict[str, Any]
    """Parameters that are not trained: whole, or (stage 3) this rank's parts."""


def _number_of_elements(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def read_layout(engine: DeepSpeedObject, optimizer: torch.optim.Optimizer) -> Layout:
    """Locate the pieces of every tensor in DeepSpeed's buffers. Collective.

    Args:
        engine: the DeepSpeed engine.
        optimizer: our optimizer, which the engine wraps.

    Raises:
        BertdsError: DeepSpeed's structures are not as this module expects.
    """
    wrapper = engine.optimizer
    named = dict(engine.module.named_parameters())
    names = {parameter: name for name, parameter in named.items()}
    trained = {name: p for name, p in named.items() if p.requires_grad}
    if getattr(wrapper, "optimizer", wrapper) is not optimizer:
        raise _unexpected(f"{type(wrapper).__name__} does not wrap our optimizer")
    # The attributes of DeepSpeed's wrapper show how it partitions the master weights.
    if engine.zero_optimization_stage() == 0:
        kind = "stage0"
        partitions = [
            Partition(tensor=p, slices=[Slice(name, 0, 0, p.numel())])
            for name, p in trained.items()
        ]
    elif hasattr(wrapper, "single_partition_of_fp32_groups"):
        kind, partitions = "zero12", _read_zero_1_2(wrapper, names)
    elif hasattr(wrapper, "fp32_groups_flat_partition"):
        kind, partitions = "bf16", _read_bf16_optimizer(wrapper, names)
    elif hasattr(wrapper, "fp32_partitioned_groups_flat"):
        kind, partitions = "zero3", _read_zero_3(wrapper, names)
    else:
        raise _unexpected(f"unknown optimizer wrapper {type(wrapper).__name__}")
    # The optimizers update flat float32 vectors in place.
    for partition in partitions:
        if partition.tensor.dtype != torch.float32 or not partition.tensor.is_contiguous():
            raise _unexpected("master weights are not contiguous float32 tensors")
    layout = Layout(
        kind=kind,
        partitions=partitions,
        numels={name: _number_of_elements(p) for name, p in trained.items()},
        frozen={name: p for name, p in named.items() if not p.requires_grad},
    )
    _check_cover(layout)
    return layout


def _unexpected(what: str) -> BertdsError:
    import deepspeed

    return BertdsError(
        f"DeepSpeed {deepspeed.__version__}: {what}; the layout is known for "
        f"{', '.join(TESTED_VERSIONS)}"
    )


def _cut(
    tensors: list[torch.nn.Parameter], offsets: list[int], start: int, end: int, names: dict
) -> list[Slice]:
    """Return the pieces of ``tensors`` (at ``offsets`` of a long vector) in ``[start, end)``."""
    slices = []
    for parameter, offset in zip(tensors, offsets, strict=True):
        first = max(offset, start)
        last = min(offset + parameter.numel(), end)
        if first < last:
            slices.append(Slice(names[parameter], first - offset, first - start, last - first))
    return slices


def _read_zero_1_2(wrapper: DeepSpeedObject, names: dict) -> list[Partition]:
    if wrapper.round_robin_gradients:
        raise _unexpected("round_robin_gradients is on")
    partitions = []
    for index, flat in enumerate(wrapper.single_partition_of_fp32_groups):
        group = wrapper.real_dp_process_group[index]
        size = int(wrapper.partition_size[index])
        if flat.numel() != size:
            raise _unexpected(f"partition {index} has {flat.numel()} elements, not {size}")
        # Every rank owns one equal part of the concatenated group.
        start = dist.get_rank(group) * size
        slices = _cut(
            wrapper.round_robin_bit16_groups[index],
            wrapper.round_robin_bit16_offsets[index],
            start,
            start + size,
            names,
        )
        partitions.append(Partition(tensor=flat, slices=slices, group=group))
    return partitions


def _read_bf16_optimizer(wrapper: DeepSpeedObject, names: dict) -> list[Partition]:
    partitions = []
    for index, flat in enumerate(wrapper.fp32_groups_flat_partition):
        group = wrapper.real_dp_process_group[index]
        tensors = wrapper.bf16_groups[index]
        # Groups are concatenated without gaps, so offsets are running sums of the lengths.
        offsets, end = [], 0
        for parameter in tensors:
            offsets.append(end)
            end += parameter.numel()
        start = dist.get_rank(group) * flat.numel()
        slices = _cut(tensors, offsets, start, start + flat.numel(), names)
        partitions.append(Partition(tensor=flat, slices=slices, group=group))
    return partitions


def _read_zero_3(wrapper: DeepSpeedObject, names: dict) -> list[Partition]:
    partitions = []
    for index, flat in enumerate(wrapper.fp32_partitioned_groups_flat):
        group = wrapper.sub_group_process_groups[index]
        rank = dist.get_rank(group)
        slices, offset = [], 0
        for parameter in wrapper.fp16_groups[index]:
            # The last rank's part of a tensor ends with padding; a small tensor may leave a rank
            # nothing.
            part = int(parameter.ds_tensor.ds_numel)
            start = rank * part
            length = min(part, _number_of_elements(parameter) - start)
            if length > 0:
                slices.append(Slice(names[parameter], start, offset, length))
            offset += part
        if offset != flat.numel():
            raise _unexpected(f"sub-group {index} has {flat.numel()} elements, not {offset}")
        partitions.append(Partition(tensor=flat, slices=slices, group=group))
    return partitions


def _check_cover(layout: Layout) -> None:
    """Check that the pieces of all ranks together cover every tensor exactly once."""
    here = dict.fromkeys(layout.numels, 0)
    for partition in layout.partitions:
        for piece in partition.slices:
            here[piece.name] += piece.length
    counts = torch.tensor(list(here.values()), dtype=torch.int64)
    # At stage 0 every rank has everything, so there is nothing to add up.
    if layout.kind != "stage0" and dist.get_world_size() > 1:
        device = "cpu" if dist.get_backend() == "gloo" else torch.cuda.current_device()
        counts = counts.to(device)
        dist.all_reduce(counts)
    wanted = list(layout.numels.values())
    if counts.tolist() != wanted:
        wrong = [n for n, a, b in zip(here, counts.tolist(), wanted, strict=True) if a != b]
        raise _unexpected(f"the pieces of {wrong[0]} do not cover the tensor")


@torch.no_grad()
def refresh_weights(engine: DeepSpeedObject, layout: Layout) -> None:
    """Copy changed master weights to the weights that the model computes with, on all ranks."""
    wrapper = engine.optimizer
    if layout.kind in ("zero12", "bf16"):
        wrapper.update_lp_params()
    elif layout.kind == "zero3":
        wrapper._partition_all_parameters()
        for index in range(len(wrapper.fp16_groups)):
            wrapper._reassign_or_swap_out_partitioned_parameters(index)
        wrapper._post_step([])  # gathers small parameters, which every rank keeps whole


def drop_gradients(engine: DeepSpeedObject, layout: Layout) -> None:
    """Forget the gradient sums of a step that was not finite.

    DeepSpeed does so itself, except for float32 sums of an offloaded optimizer at stages 1 and 2:
    the next step would be added to them, and no later one would be finite.
    """
    if layout.kind == "zero12":
        sums = engine.optimizer.averaged_gradients
        for group in sums:
            sums[group] = None


def norm_under_way(engine: DeepSpeedObject) -> float | torch.Tensor:
    """Return the global gradient norm of the step in progress.

    The wrapper stores it before it calls the optimizer; the engine copies it only afterwards.
    """
    try:
        return engine.optimizer._global_grad_norm
    except AttributeError:
        name = type(engine.optimizer).__name__
        raise _unexpected(f"{name} has no _global_grad_norm") from None


def frozen_pieces(
    layout: Layout, rank: int, world_size: int
) -> list[tuple[str, int, torch.Tensor]]:
    """Return this rank's share of the frozen parameters as (name, start, vector over live memory).

    Whole tensors are assigned to the ranks in turn; at stage 3 each rank has its own parts.
    """
    pieces = []
    for index, (name, parameter) in enumerate(layout.frozen.items()):
        if layout.kind == "zero3":
            part = int(parameter.ds_tensor.ds_numel)
            start = rank * part
            length = min(part, _number_of_elements(parameter) - start)
            if length > 0:
                pieces.append((name, start, parameter.ds_tensor.detach().view(-1)[:length]))
        elif index % world_size == rank:
            pieces.append((name, 0, parameter.detach().view(-1)))
    return pieces


def frozen_targets(layout: Layout, rank: int) -> list[tuple[str, int, torch.Tensor]]:
    """Return the vectors that a load must fill on this rank for the frozen parameters."""
    if layout.kind == "zero3":
        return frozen_pieces(layout, rank, 1)
    return [(name, 0, p.detach().view(-1)) for name, p in layout.frozen.items()]
