"""Fine-tuning under DeepSpeed: the same engine, JSON and ZeRO stages as pre-training.

Every rank receives the rows of the whole batch and takes its part. The last, shorter batch of an
epoch is distributed as evenly as possible. A rank without rows computes one row whose loss counts
as zero, so that all ranks take part in the collective operations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from bertds.distributed.rank_info import find_rank_info
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import load_deepspeed_json
from bertds.errors import BertdsError
from bertds.finetune.features import IGNORED, Example, collate, scored_terms
from bertds.finetune.loop import HeadOutput, TrainSettings, mean_loss, to_device

_PREFIX = "model."


class _Loss(NamedTuple):
    """The output that the engine expects of a model: two losses, of which fine-tuning has one."""

    mlm_loss_sum: torch.Tensor
    nsp_loss_sum: torch.Tensor


class _Batch(dict):
    """The model's arguments, as the micro batch that the engine expects."""

    def model_inputs(self) -> dict[str, torch.Tensor]:
        return self


class _WithLoss(nn.Module):
    """A transformers model whose loss is a sum over the scored terms, not their mean."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **arguments: torch.Tensor) -> object:
        if not arguments.keys() & {"labels", "start_positions"}:
            return self.model(**arguments)
        total = mean_loss(self.model, arguments).float() * _scored(arguments)
        return _Loss(total, torch.zeros_like(total))


def _scored(arguments: dict[str, torch.Tensor]) -> int:
    """Return the number of terms in the model's mean loss: labelled tokens, or rows."""
    labels = arguments.get("labels")
    if labels is not None and labels.dim() == 2:
        return int((labels != IGNORED).sum())
    return len(arguments["input_ids"])


class DeepSpeedStepper:
    """One model under the engine; see :class:`bertds.finetune.loop.Stepper`."""

    def __init__(
        self, model: nn.Module, settings: TrainSettings, pad_id: int, json_path: str
    ) -> None:
        checked = load_deepspeed_json(json_path)
        plan = checked.batch_plan(find_rank_info().world_size)
        self._pad_id, self._plan = pad_id, plan
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._engine = Engine.create(_WithLoss(model), checked, plan, seed=settings.seed)
        self.rank = self._engine.rank
        self.device = self._engine.device
        self.settings = replace(settings, batch_size=checked.train_batch_size)
        """The settings with the batch size of the JSON."""
        self._seed, self._step = settings.seed, 0

    def step(self, examples: list[Example], learning_rate: float) -> float:
        """Make one update from the batch of all ranks; returns its mean loss."""
        engine, plan = self._engine, self._plan
        parts = plan.world_size * plan.gradient_accumulation_steps
        count = scored_terms(examples)
        if not count:
            return 0.0  # nothing in this batch is labelled: the same on every rank
        # Computed by a rank without labelled rows, with a scale of 0.
        filler = next(example for example in examples if scored_terms([example]))
        own = 0.0
        engine.set_learning_rate(learning_rate)
        for micro_step in range(plan.gradient_accumulation_steps):
            chunk = examples[self.rank * plan.gradient_accumulation_steps + micro_step :: parts]
            # The engine averages over all parts; this scale turns the sums into a mean over the
            # batch.
            scale = parts / count
            if not scored_terms(chunk):
                chunk, scale = [filler], 0.0
            engine.seed_dropout(self._seed, self._step, micro_step)
            batch = _Batch(to_device(collate(chunk, self._pad_id), self.device))
            output = engine.forward_backward(batch, mlm_scale=scale, nsp_scale=0.0)
            own += float(output.mlm_loss_sum) if scale else 0.0
        applied = engine.step()
        self._step += 1
        # While fp16 searches for its loss scale, skipped updates are normal.
        if not applied and not engine.searching_loss_scale():
            raise BertdsError(
                f"fine-tuning: the gradient is not finite at learning rate {learning_rate:.3g}; "
                "lower --learning-rate"
            )
        return float(engine.global_sums([own])[0]) / count

    def logits(self, batch: dict[str, torch.Tensor]) -> HeadOutput:
        """Run the model without dropout; every rank computes the same rows."""
        return self._engine.eval_forward(_Batch(to_device(batch, self.device)))

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Return all weights in float32 at any ZeRO stage; see :class:`Stepper`."""
        mine = [
            (piece.name, piece.start, piece.tensor.detach().to("cpu", torch.float32).clone())
            for piece in self._engine.pieces()
            if piece.kind == "weight"
        ]
        weights = {name: torch.empty(shape) for name, shape in self._shapes.items()}
        for pieces in self._engine.gather_objects(mine):
            for name, start, tensor in pieces:
                flat = weights[name.removeprefix(_PREFIX)].view(-1)
                flat[start : start + tensor.numel()] = tensor
        return weights
