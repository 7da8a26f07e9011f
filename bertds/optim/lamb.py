"""LAMB, exact however ZeRO divides the tensors: layer-wise adaptive large-batch optimization.

LAMB (arXiv:1904.00962, Algorithm 2) is Adam whose update of each *tensor* is scaled by a trust
ratio ``|w| / |u|``. ZeRO gives an optimizer one long vector per rank, in which tensors begin and
end anywhere. Applied to the whole vector, the ratio would be a single number: wrong, and different
on each rank. Here the vector comes with the list of the tensor pieces in it::

    pass 1   m, v <- g;  u = m^ / (sqrt(v^) + eps) + decay * w;  sums of w*w and u*u per piece
             one all-reduce of two numbers per adapted tensor (a few KiB)
    pass 2   w <- w - lr * ratio[tensor] * u      (u is recomputed: cheaper than storing it)

There are three variants of LAMB; the choice changes results:

========== ============================ ============ =============================================
variant    trust ratio on               clamp        bias correction
========== ============================ ============ =============================================
nvidia     tensors with weight decay    none         of the moments (NVIDIA DLE, apex)
deepspeed  all tensors                  0.01 ... 10  in the step size, sqrt(1-b2^t) / (1-b1^t), not
                                                     inside u (DeepSpeed's FusedLamb; bing_bert
                                                     switches it off and clamps to 0.01 ... 0.3)
paper      all tensors                  none         of the moments
========== ============================ ============ =============================================

The ratio is 1 if ``|w|`` or ``|u|`` is zero. Gradients are clipped before the optimizer is called.
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

    All parameters are in one group: ZeRO calls ``step`` once per group, and each call makes one
    all-reduce. Names decide which tensors are decayed and adapted.

    Args:
        params: the trainable parameters.
        lr: learning rate; may be changed in ``param_groups`` between steps.
        betas: decay rates of the moments.
        eps: added to the square root of the second moment.
        weight_decay: for the tensors that ``is_decayed`` selects.
        variant: nvidia, deepspeed or paper; see the module docstring.
        bias_correction: whether to correct the moments for starting at zero.
        min_coeff: lowest trust ratio.
        max_coeff: highest trust ratio.
        is_decayed: takes a parameter's name and returns whether it is decayed.
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

        Biases and LayerNorm weights are not decayed, as in every BERT recipe. torch's learning-rate
        schedulers work as usual.

        Args:
            model: float32 parameters, on the device that they are trained on.
            lr: learning rate.
            settings: ``betas``, ``eps``, ``weight_decay``, ``variant`` and the other arguments of
                the class. Defaults are those of the variant, as in a DeepSpeed JSON.

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
        """Set which tensor pieces are in which partition.

        Args:
            partitions: this rank's; their tensors are (or will be) this optimizer's parameters.
            names: all tensors of the model, in the same order on all ranks.
            device: where collectives run; None = the device of the partitions.
            kernels: compiled = loops for a CPU; triton = kernels for a GPU; None = the one for
                each partition's device.

        Raises:
            BertdsError: a partition is on a GPU and there is no Triton.
        """
        # NVIDIA's variant adapts exactly the decayed tensors; the others adapt all.
        index = {name: number for number, name in enumerate(names)}
        decayed = [self.is_decayed(name) for name in names]
        adapted = [self.variant != "nvidia" or flag for flag in decayed]
        self._device = device or (partitions[0].tensor.device if partitions else self._device)
        self._names = names
        self._decayed = torch.tensor(decayed)
        self._adapted = torch.tensor(adapted, device=self._device)
        self._ratios = torch.ones(len(names), dtype=torch.float64, device=self._device)
        # Positions in the reduced vector: only the sums of adapted tensors are exchanged.
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
        """Update every parameter that has a gradient. One all-reduce if tensors are divided.

        Raises:
            RuntimeError: a parameter is in no partition that ``bind`` was given.
        """
        if closure is not None:
            raise RuntimeError("ShardedLamb takes no closure")
        todo = [
            (group, tensor)
            for group in self.param_groups
            for tensor in group["params"]
            if tensor.grad is not None
        ]
        # Pass 1: update the moments, and add up the squared norms of w and u per tensor.
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
        # A tensor's pieces may be on several ranks: its norms are the sums over all of them.
        if process_group is not None and dist.get_world_size(process_group) > 1:
            travelling = sums[:, self._travelling]
            dist.all_reduce(travelling, group=process_group)
            sums[:, self._travelling] = travelling
        # Pass 2: the ratios are now the same on every rank.
        ratios = self._trust_ratios(sums)
        for work, numbers in works:
            work.apply(ratios, numbers)

    def _trust_ratios(self, sums: torch.Tensor) -> torch.Tensor:
        """Return one ratio per tensor, and record those of the tensors just updated."""
        weight, update = sums.sqrt().unbind()
        good = (weight > 0) & (update > 0) & self._adapted
        ratios = (weight / update).clamp(self.min_coeff, self.max_coeff)
        ratios = torch.where(good, ratios, torch.ones_like(ratios))
        # With several sub-groups (ZeRO-3) each call handles only its own tensors.
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
            f"LAMB on a GPU requires Triton, which comes with torch for CUDA and ROCm ({error}); "
            "install it with: pip install triton"
        ) from error
    return TritonLamb
