"""DeepSpeed's gradient norm, where it is not exact on a CPU.

ZeRO's wrappers for stages 1 to 3 take their norm in float64. ``BF16_Optimizer`` (bf16, stage 1,
float32 accumulation) takes torch's float32 norm of every whole tensor, which on a CPU is low by
5e-4 at 3.9 million numbers. Written for and tested with DeepSpeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bertds.optim.gradient_norm import global_norm


def use_exact_norms() -> None:
    """Have ``BF16_Optimizer`` take the norm of tensors in a CPU's memory in float64."""
    from deepspeed.runtime import bf16_optimizer

    original = bf16_optimizer.get_global_norm_of_tensors
    if getattr(original, "is_exact", False):
        return

    def exact(
        input_tensors: Sequence[torch.Tensor],
        norm_type: float = 2,
        mpu: object = None,
        moe_ep_group: object = None,
    ) -> torch.Tensor:
        on_cpu = all(tensor.device.type == "cpu" for tensor in input_tensors)
        if not on_cpu or norm_type != 2 or mpu is not None or moe_ep_group is not None:
            return original(input_tensors, norm_type, mpu, moe_ep_group)
        return global_norm(input_tensors).float()

    exact.is_exact = True  # type: ignore[attr-defined]
    bf16_optimizer.get_global_norm_of_tensors = exact
