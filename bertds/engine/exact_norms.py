"""The gradient norm and the clipping of DeepSpeed's wrapper for bf16 at ZeRO stage 1.

ZeRO's wrappers for stages 1 to 3 take their norm in float64. ``BF16_Optimizer`` (bf16, stage 1,
float32 accumulation) goes through the tensors one by one: three operators each for the norm, which
on a CPU is low by 5e-4 at 3.9 million numbers, and one each for clipping. For BERT-large that is
1,600 operators per step, for which a GPU waits. Here both are one call over all tensors. Written
for and tested with DeepSpeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bertds.optim.gradient_norm import global_norm


def use_exact_norms() -> None:
    """Have ``BF16_Optimizer`` take its norm, and clip, over all tensors at once."""
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
