"""LAMB, exact for any cut of the tensors: layer-wise adaptive large-batch optimization.

LAMB (arXiv:1904.00962, Algorithm 2) is Adam whose update of each *tensor* is scaled by a trust
ratio ``|w| / |u|``. ZeRO gives an optimizer one long vector per rank, in which tensors begin and
end anywhere. Taken as it is, the ratio would be one number for the whole vector: wrong, and
another on each rank. Here the vector comes with the list of tensor pieces in it::

    pass 1   m, v <- g;  u = m^ / (sqrt(v^) + eps) + decay * w;  sums of w*w and u*u per piece
             one all-reduce of two numbers per adapted tensor (a few KiB)
    pass 2   w <- w - lr * ratio[tensor] * u      (u is computed again: cheaper than keeping it)

Three LAMBs are in use; the choice changes results:

========== ============================ ============ =============================================
variant    trust ratio on               clamp        bias correction
========== ============================ ============ =============================================
nvidia     tensors with weight decay    none         of the moments (NVIDIA DLE, apex)
deepspeed  all tensors                  0.01 ... 10  in the step size, sqrt(1-b2^t) / (1-b1^t), not
                                                     inside u (DeepSpeed's FusedLamb; bing_bert
                                                     switches it off and clamps to 0.01 ... 0.3)
paper      all tensors                  none         of the moments
========== ============================ ============ =============================================

A ratio is 1 where ``|w|`` or ``|u|`` is zero. Gradients are clipped before they come here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from bertds.errors import BertdsError
from bertds.optim.lamb_coefficients import StepNumbers
from bertds.optim.lamb_cpu import CpuLamb
from bertds.optim.moments import create_moments
from bertds.optim.partition import Partition, Slice
from bertds.optim.settings import LAMB_DEFAULTS
from bertds.optim.weight_decay import is_decayed

if TYPE_CHECKING:
    from bertds.optim.lamb_triton import TritonLamb

Kernels = Literal["compiled", "triton"]


class ShardedLamb(torch.optim.Optimizer):
    """Exact LAMB over partitions. Call ``bind`` before the first step.

    All parameters go into one group: ZeRO calls ``step`` once per group, and each call makes one
    all-reduce. Which tensors are decayed and adapted is known by name.

    Args:
        params: the trainable parameters.
        lr: learning rate; may be changed in ``param_groups`` between steps.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.
        weight_decay: for the tensors that ``is_decayed`` names.
        variant: nvidia, deepspeed or paper; see the module.
        bias_correction: whether the moments' start at zero is made up for.
        min_coeff: lowest trust ratio.
        max_coeff: highest trust ratio.
        is_decayed: decides by a parameter's name whether it is decayed.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        variant: str = "nvidia",
        bias_correction: bool = True,
        min_coeff: float = 0.0,
        max_coeff: float = math.inf,
        is_decayed: Callable[[str], bool],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.variant = variant
        self.bias_correction = bias_correction
        self.min_coeff = min_coeff
        self.max_coeff = max_coeff
        self.is_decayed = is_decayed
        self._works: dict[int, CpuLamb | TritonLamb] = {}
        self._device = torch.device("cpu")

    @classmethod
    def for_model(cls, model: torch.nn.Module, *, lr: float, **settings: Any) -> ShardedLamb:
        """Return LAMB for a model that every process holds whole: one process, or torch's DDP.

        Biases and LayerNorm weights are not decayed, as in every BERT recipe. Learning-rate
        schedulers of torch change ``param_groups`` as usual.

        Args:
            model: float32 parameters, on the device that they are trained on.
            lr: learning rate.
            settings: ``betas``, ``eps``, ``weight_decay``, ``variant`` and the others of the class,
                with the variant's defaults as in a DeepSpeed JSON; ``is_decayed`` decides by a
                parameter's name whether it is decayed.

        Raises:
            BertdsError: the model is on a GPU and there is no Triton.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        defaults: dict[str, Any] = {"is_decayed": is_decayed}
        defaults |= LAMB_DEFAULTS[settings.get("variant", "nvidia")]
        settings = {**defaults, **settings}
        optimizer = cls([parameter for _, parameter in named], lr=lr, **settings)
        partitions = [Partition(p, [Slice(name, 0, 0, p.numel())]) for name, p in named]
        optimizer.bind(partitions, [name for name, _ in named])
        return optimizer

    def bind(
        self,
        partitions: list[Partition],
        names: list[str],
        device: torch.device | None = None,
        *,
        kernels: Kernels | None = None,
    ) -> None:
        """Say which tensor pieces are in which partition.

        Args:
            partitions: this rank's; their tensors are (or will be) this optimizer's parameters.
            names: all tensors of the model in one order, the same on all ranks.
            device: where collectives run; None = the partitions' own.
            kernels: compiled = loops for a CPU; triton = kernels for a GPU; None = what suits each
                partition's device.

        Raises:
            BertdsError: a partition is on a GPU and there is no Triton.
        """
        index = {name: number for number, name in enumerate(names)}
        decayed = [self.is_decayed(name) for name in names]
        adapted = [self.variant != "nvidia" or flag for flag in decayed]
        self._device = device or (partitions[0].tensor.device if partitions else self._device)
        self._names = names
        self._decayed = torch.tensor(decayed)
        self._adapted = torch.tensor(adapted, device=self._device)
        self._ratios = torch.ones(len(names), dtype=torch.float64, device=self._device)
        # Positions in the reduced vector: only adapted tensors travel.
        self._travelling = torch.tensor(
            [number for number, flag in enumerate(adapted) if flag], device=self._device
        )
        self._works = {}
        for partition in partitions:
            create_moments(self, partition.tensor)
            on_cpu = partition.tensor.device.type == "cpu"
            wanted = kernels or ("compiled" if on_cpu else "triton")
            kind = CpuLamb if wanted == "compiled" else _triton_lamb()
            self._works[id(partition.tensor)] = kind(partition, index, decayed)

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. One all-reduce if tensors are cut.

        Raises:
            RuntimeError: a parameter was not announced to ``bind``.
        """
        if closure is not None:
            raise RuntimeError("ShardedLamb takes no closure")
        todo = [
            (group, tensor)
            for group in self.param_groups
            for tensor in group["params"]
            if tensor.grad is not None
        ]
        works, sums, process_group = [], None, None
        for group, tensor in todo:
            work = self._works.get(id(tensor))
            if work is None:
                raise RuntimeError("ShardedLamb.step: call bind() with the partitions first")
            state = self.state[tensor]
            state["step"] += 1
            numbers = StepNumbers.of(group, state["step"], self.variant, self.bias_correction)
            part = work.update_moments(tensor.grad, state["exp_avg"], state["exp_avg_sq"], numbers)
            part = part.to(self._device, non_blocking=True)
            sums = part if sums is None else sums.add_(part)
            process_group = process_group or work.partition.group
            works.append((work, numbers))
        if sums is None:
            return
        if process_group is not None and dist.get_world_size(process_group) > 1:
            travelling = sums[:, self._travelling]
            dist.all_reduce(travelling, group=process_group)
            sums[:, self._travelling] = travelling
        ratios = self._trust_ratios(sums)
        for work, numbers in works:
            work.apply(ratios, numbers)

    def _trust_ratios(self, sums: torch.Tensor) -> torch.Tensor:
        """Return one ratio per tensor; remember those of the tensors that were just stepped."""
        weight, update = sums.sqrt().unbind()
        good = (weight > 0) & (update > 0) & self._adapted
        ratios = (weight / update).clamp(self.min_coeff, self.max_coeff)
        ratios = torch.where(good, ratios, torch.ones_like(ratios))
        # With several sub-groups (ZeRO-3) each call sees its own tensors only.
        self._ratios = torch.where(good, ratios, self._ratios)
        return ratios

    def trust_ratios(self) -> dict[str, float]:
        """Return the last step's trust ratio of every adapted tensor, by name."""
        values = self._ratios.tolist()
        adapted = self._adapted.tolist()
        return {n: v for n, v, a in zip(self._names, values, adapted, strict=True) if a}

    def trust_ratio_summary(self) -> dict[str, tuple[float, float, float]]:
        """Return (lowest, median, highest) of the last step, for ``decay`` and ``no_decay``."""
        ratios, adapted = self._ratios.cpu(), self._adapted.cpu()
        summary = {}
        for name, members in (("decay", self._decayed), ("no_decay", ~self._decayed)):
            values = ratios[members & adapted]
            if len(values):
                summary[name] = (float(values.min()), float(values.median()), float(values.max()))
        return summary


def _triton_lamb() -> type[TritonLamb]:
    try:
        from bertds.optim.lamb_triton import TritonLamb
    except ImportError as error:
        raise BertdsError(
            f"LAMB on a GPU needs Triton, which comes with torch for CUDA and ROCm ({error}); "
            "pip install triton"
        ) from error
    return TritonLamb
