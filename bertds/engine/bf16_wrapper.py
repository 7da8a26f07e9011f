"""DeepSpeed's wrapper for bf16 at ZeRO stage 1, whose steps are made over all tensors at once.

``BF16_Optimizer`` (bf16, stage 1, float32 accumulation) goes through the tensors one by one. For
BERT-large that is 1,200 operators per micro batch and 1,600 per step, which keep the host busier
than the model does. It also copies all gradients into one buffer and back in order to reduce them,
though they are in one buffer each. The results here are the same to the bit, except for the norm on
a CPU, which is more exact. Written for and tested with DeepSpeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from bertds.engine.zero_layout import DeepSpeedObject
from bertds.optim.gradient_norm import global_norm


def work_on_all_tensors(engine: DeepSpeedObject) -> None:
    """Change how the wrapper of stage 1 in bf16 accumulates, reduces, measures and clips.

    Other wrappers are left as they are.
    """
    wrapper = engine.optimizer
    if not hasattr(wrapper, "update_hp_grads"):
        return
    use_exact_norms()
    engine.allreduce_and_copy = _InPlace(engine)
    # Asked for in the JSON, each gradient is added by a hook of its own.
    if not wrapper.immediate_grad_update and not getattr(wrapper, "autoep_folding_tp_group", None):
        wrapper.update_hp_grads = _Accumulation(wrapper)


class _Accumulation:
    """Adds the gradients of a micro batch to their float32 sums.

    DeepSpeed casts each gradient to float32, adds that copy, and zeroes the gradient so that the
    next backward pass adds to zeros.
    """

    def __init__(self, wrapper: DeepSpeedObject) -> None:
        self._wrapper = wrapper
        self._parameters: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        for group, totals in zip(wrapper.bf16_groups, wrapper.fp32_groups_gradients, strict=True):
            for parameter, total in zip(group, totals, strict=True):
                parameter._hp_grad = total
                self._parameters.append(parameter)
                self._sums.append(total.data.view(parameter.shape))

    @torch.no_grad()
    def __call__(self, clear_lp_grads: bool = False) -> None:
        sums, gradients, present = [], [], []
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            gradient = parameter.grad
            present.append(gradient is not None)
            if gradient is not None:
                sums.append(total)
                gradients.append(gradient)
        if gradients:
            torch._foreach_add_(sums, gradients)
        start = 0
        for flags in self._wrapper.fp32_groups_has_gradients:
            here = present[start : start + len(flags)]
            flags[:] = [was or now for was, now in zip(flags, here, strict=True)]
            start += len(flags)
        for parameter in self._parameters:
            parameter.grad = None  # the next backward pass leaves its own, instead of adding


class _InPlace:
    """Averages gradient buffers over the ranks, each where it is."""

    def __init__(self, engine: DeepSpeedObject) -> None:
        self._engine = engine

    def __call__(
        self,
        small_bucket: Sequence[torch.Tensor],
        dp_group: dist.ProcessGroup,
        dp_world_size: float | None = None,
    ) -> None:
        alone = dist.get_world_size(dp_group) == 1
        for buffer in small_bucket:
            if alone and self._engine.communication_data_type == buffer.dtype:
                continue  # else it is rounded as on several ranks
            reduced = self._engine.allreduce_bucket([buffer], dp_group, dp_world_size)
            if reduced.data_ptr() != buffer.data_ptr():
                buffer.copy_(reduced.view_as(buffer))


def use_exact_norms() -> None:
    """Have ``BF16_Optimizer`` take its norm, and clip, over all tensors at once.

    Its own norm is low by 5e-4 on a CPU at 3.9 million numbers.
    """
    from deepspeed.runtime import bf16_optimizer

    original_norm = bf16_optimizer.get_global_norm_of_tensors
    original_clip = bf16_optimizer.clip_tensors_by_global_norm
    if getattr(original_norm, "is_exact", False):
        return

    def exact(
        input_tensors: Sequence[torch.Tensor],
        norm_type: float = 2,
        mpu: object = None,
        moe_ep_group: object = None,
    ) -> torch.Tensor:
        if norm_type != 2 or mpu is not None or moe_ep_group is not None:
            return original_norm(input_tensors, norm_type, mpu, moe_ep_group)
        return global_norm(input_tensors).float()

    def clip(
        input_tensors: Sequence[torch.Tensor],
        max_norm: float = 1.0,
        global_norm: torch.Tensor | None = None,
        mpu: object = None,
        eps: float = 1e-6,
    ) -> torch.Tensor:
        if global_norm is None:
            return original_clip(input_tensors, max_norm, global_norm, mpu, eps)
        factor = max_norm / (global_norm + eps)
        if factor < 1:
            torch._foreach_mul_(list(input_tensors), factor)
        return global_norm

    exact.is_exact = True  # type: ignore[attr-defined]
    bf16_optimizer.get_global_norm_of_tensors = exact
    bf16_optimizer.clip_tensors_by_global_norm = clip
