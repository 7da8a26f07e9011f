"""The engine: one model, its optimizer and its processes, driven through DeepSpeed.

    engine = Engine.create(model, settings, batch_plan, seed=42)
    for micro_step, micro_batch in enumerate(micro_batches):
        engine.seed_dropout(seed, step, micro_step)
        engine.forward_backward(micro_batch, mlm_scale=..., nsp_scale=...)
    applied = engine.step()

DeepSpeed divides each loss by the number of accumulation steps and averages gradients over the
ranks. With ``scale = accumulation steps * world size / count in the global batch`` the gradient is
therefore that of the mean over the global batch, independent of the number of processes and of the
micro batch size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from bertds.config.batch_plan import BatchPlan
from bertds.data.rng import WORD, random_u64
from bertds.distributed.device_timer import DeviceClock
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.engine.loss_scaling import LossScaling
from bertds.engine.process_group import end_processes
from bertds.engine.state_pieces import Piece, Reader, collect_pieces, restore_pieces
from bertds.engine.updates import Updates
from bertds.engine.weight_average import WeightAverage
from bertds.engine.wrap import Wrapped, wrap
from bertds.errors import BertdsError
from bertds.model.batch_calls import HasModelInputs
from bertds.optim.lamb import ShardedLamb
from bertds.optim.moments import count_steps
from bertds.system.fault_points import passed, reached

T = TypeVar("T")


class Engine:
    """A model in training. Build it with ``create``.

    All methods are collective, except those that only return plain numbers.
    """

    def __init__(self, wrapped: Wrapped, settings: DeepSpeedSettings, batch: BatchPlan) -> None:
        self._engine = wrapped.engine
        self._optimizer = wrapped.optimizer
        self._layout = wrapped.layout
        self.rank = wrapped.place.rank
        self.world_size = wrapped.place.world_size
        self.settings = settings
        self.batch = batch
        """The batch plan."""
        self.device = wrapped.device
        """The device on which micro batches must be."""
        self.forward_clock = DeviceClock(self.device)
        self.backward_clock = DeviceClock(self.device)
        self._average: WeightAverage | None = None
        self._updates = Updates(
            self._engine, self._optimizer, self._layout, settings.gradient_clipping, self.device
        )
        self._scaling = LossScaling(self._engine, settings.precision)

    @classmethod
    def create(
        cls,
        model: torch.nn.Module,
        settings: DeepSpeedSettings,
        batch_plan: BatchPlan,
        *,
        seed: int,
    ) -> Engine:
        """Start the process group, wrap the model and build its optimizer.

        Args:
            model: float32, on the CPU. All ranks receive rank 0's weights.
            settings: the checked DeepSpeed JSON.
            batch_plan: ``settings.batch_plan(world_size)``.
            seed: for random numbers that are drawn before the first ``seed_dropout``.

        Raises:
            ConfigError: the settings do not fit the device.
            BertdsError: the processes did not meet, or an operator could not be compiled.
        """
        wrapped = wrap(model, settings, batch_plan, seed)
        engine = cls(wrapped, settings, batch_plan)
        exact = wrapped.exact
        if exact is not None:
            engine.load_pieces(
                lambda name, kind, start, length: exact[name].view(-1)[start : start + length],
                optimizer_steps=0,
                moments=False,
            )
        return engine

    # ----------------------------------------------------------------------------------------
    # Training
    # ----------------------------------------------------------------------------------------

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def use_batch(self, batch: BatchPlan) -> None:
        """Divide the next step's global batch differently; only the accumulation may change.

        Call it between steps.
        """
        if batch == self.batch:
            return
        self.batch = batch
        self._engine.set_train_batch_size(batch.global_batch_size)
        # DeepSpeed finds the end of a step by dividing this count by the accumulation steps.
        self._engine.micro_steps = 0

    def seed_dropout(self, seed: int, step: int, micro_step: int) -> None:
        """Make the following dropout masks a function of the arguments only.

        The rank is mixed in, so that no two ranks share a mask. Called before each forward pass, it
        makes saving the generator's state unnecessary.
        """
        reached("engine.seed", step=step, micro_step=micro_step)
        mixed = 0
        for part in (seed, step, micro_step, self.rank):
            mixed = random_u64(mixed ^ (part & WORD), 0)
        torch.manual_seed(mixed >> 1)

    def forward_backward(
        self,
        micro_batch: HasModelInputs,
        *,
        mlm_scale: float | torch.Tensor,
        nsp_scale: float | torch.Tensor,
    ) -> Any:
        """Run a micro batch through the model and add its gradient.

        Args:
            micro_batch: on ``device``.
            mlm_scale: factor of ``mlm_loss_sum``; the module docstring gives its value.
            nsp_scale: factor of ``nsp_loss_sum``.

        Returns:
            The model's output, detached.
        """
        reached("engine.forward")
        self._set_training(True)
        with self.forward_clock.timed():
            output = self._engine(**micro_batch.model_inputs())
            output = passed("engine.output", output, micro_batch=micro_batch)
            loss = _scaled(output.mlm_loss_sum, mlm_scale)
            loss = loss + _scaled(output.nsp_loss_sum, nsp_scale)
        with self.backward_clock.timed():
            self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro batch
        return type(output)(*(None if value is None else value.detach() for value in output))

    def step(self, norm_limit: float = math.inf) -> bool:
        """Update the weights from the gradients accumulated since the last step.

        Args:
            norm_limit: skip the update if the gradient norm before clipping exceeds it.

        Returns:
            Whether an update was made. False: a gradient was not finite (in fp16 this also lowers
            the loss scale), or its norm exceeded the limit. Weights and moments are then
            unchanged.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            raise BertdsError(
                "step() was called before all "
                f"{self.batch.gradient_accumulation_steps} micro batches of the step"
            )
        reached("engine.step")
        applied = self._updates.make(norm_limit)
        self._scaling.adjust()
        reached("engine.stepped")
        return applied

    def keep_average(self) -> None:
        """Keep a moving average of the weights from here on; checkpoints then contain it."""
        self._average = WeightAverage(self._layout)

    def update_average(self, decay: float) -> None:
        """Move the average, if there is one, towards the weights by 1 - ``decay``."""
        if self._average is not None:
            self._average.update(decay)

    def averaged(self) -> AbstractContextManager[None]:
        """Use the averaged weights, if there are any, inside this context. Collective."""
        if self._average is None:
            return nullcontext()
        return self._average.in_place(self._engine)

    def gradient_norm(self) -> float | None:
        """Return the last step's global gradient norm before clipping; inf if not finite."""
        norm = self._updates.norm
        return None if norm is None else float(norm)

    def trust_ratios(self) -> dict[str, tuple[float, float, float]]:
        """Return LAMB's (lowest, median, highest) trust ratio per group; empty without LAMB."""
        if isinstance(self._optimizer, ShardedLamb):
            return self._optimizer.trust_ratio_summary()
        return {}

    @torch.no_grad()
    def eval_forward(self, micro_batch: HasModelInputs, *, predict: bool = False) -> Any:
        """Run a micro batch through the model without dropout and without gradients.

        Args:
            micro_batch: as for :meth:`forward_backward`.
            predict: return the most likely token ids instead of the masked-LM loss.
        """
        reached("engine.evaluate")
        self._set_training(False)
        more = {"predict": True} if predict else {}
        return self._engine(**micro_batch.model_inputs(), **more)

    def _set_training(self, mode: bool) -> None:
        if self._engine.module.training != mode:  # train() visits every module
            self._engine.train(mode)

    def global_sums(self, values: list[float]) -> torch.Tensor:
        """Sum numbers over all ranks in one small all-reduce.

        Returns:
            A float64 vector on the device. Nothing waits for the device until it is read.
        """
        # Pinned memory: a copy from pageable memory may wait for all queued work.
        pinned = self.device.type == "cuda"
        sums = torch.tensor(values, dtype=torch.float64, pin_memory=pinned)
        sums = sums.to(self.device, non_blocking=True)
        if self.world_size > 1:
            dist.all_reduce(sums)
        return sums

    def gather_objects(self, value: T) -> list[T]:
        """Return every rank's value (small, picklable), on every rank, in the order of ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    # ----------------------------------------------------------------------------------------
    # State
    # ----------------------------------------------------------------------------------------

    def pieces(self) -> list[Piece]:
        """Return this rank's part of the weights and moments; see bertds/engine/state_pieces.py."""
        return collect_pieces(
            self._layout, self._optimizer, self._average, self.rank, self.world_size
        )

    def optimizer_steps(self) -> int:
        """Return the number of updates that the moments have seen."""
        return count_steps(self._optimizer, (p.tensor for p in self._layout.partitions))

    def load_pieces(
        self, read: Reader, *, optimizer_steps: int, moments: bool, averaged: bool = False
    ) -> None:
        """Set weights and moments from saved ones, by name.

        Args:
            read: ``read(name, kind, start, length)`` returns these float32 values.
            optimizer_steps: the step counter for the moments' bias correction.
            moments: False leaves the moments and the step counter at zero.
            averaged: whether an average was saved; False starts it from the weights.
        """
        restore_pieces(
            self._engine,
            self._layout,
            self._optimizer,
            self._average,
            read,
            rank=self.rank,
            optimizer_steps=optimizer_steps,
            moments=moments,
            averaged=averaged,
        )

    def extra_state(self) -> dict[str, float]:
        """Return the loss scaler's numbers, which a resumed run also needs (fp16 only)."""
        return self._scaling.numbers()

    def load_extra_state(self, state: Mapping[str, float]) -> None:
        """Restore what ``extra_state`` returned; keys of another precision are ignored."""
        self._scaling.set_numbers(state)

    def loss_scale(self) -> float | None:
        """Return the current loss scale; None without fp16."""
        return self._scaling.current()

    def searching_loss_scale(self) -> bool:
        """Return whether a lower loss scale may avoid the last step's overflow (fp16 only)."""
        return self._scaling.is_searching()

    def describe(self) -> str:
        """Return optimizer, precision and sharding in a few words, for the log."""
        wanted = self.settings.optimizer
        name = f"LAMB ({wanted.variant})" if wanted.kind == "Lamb" else wanted.kind
        offload = ", offloaded" if self.settings.offloads_optimizer else ""
        return (
            f"{name}, ZeRO stage {self.settings.stage}{offload}, {self.settings.precision}, "
            f"{self.device.type}"
        )

    def close(self, *, orderly: bool = True) -> None:
        """End the run on all ranks: barrier, DeepSpeed, process group.

        Args:
            orderly: False if other ranks may be gone; then no other rank is waited for.
        """
        end_processes(self._engine, wait=orderly)


def _scaled(loss: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    # A float64 scalar tensor would make the loss, and the first gradients, float64.
    return loss * (scale.to(loss.dtype) if torch.is_tensor(scale) else scale)
