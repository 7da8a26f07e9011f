"""Training and prediction of fine-tuning: plain torch, or DeepSpeed behind a stepper.

A run is a pure function of (weights, data, settings, seed). The seed decides the new head, the
order of the rows and the dropout. The settings are those of the original BERT: AdamW, linear warmup
over 10% of the steps, linear decay to zero, gradient norm clipped at 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from bertds.errors import BertdsError
from bertds.finetune.features import Batching, Example, collate, epoch_batches, scored_terms
from bertds.optim.gradient_norm import clip_gradients, global_norm
from bertds.optim.weight_decay import split_parameters
from bertds.system.logs import log

LOG_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """The settings of one training run, besides weights and data."""

    learning_rate: float
    epochs: float = 3.0
    batch_size: int = 32
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    adam_epsilon: float = 1e-8
    max_gradient_norm: float = 1.0
    seed: int = 42
    precision: Literal["fp32", "bf16"] = "fp32"
    batching: Batching = "length"


@dataclass(frozen=True, slots=True)
class TrainReport:
    """Statistics of one training run."""

    steps: int
    seconds: float
    last_loss: float
    """Mean loss of the last 10% of the steps."""


class Logits(Protocol):
    """transformers' output of a head that scores rows or tokens."""

    logits: torch.Tensor


@runtime_checkable
class SpanLogits(Protocol):
    """transformers' output of a head that finds a span."""

    start_logits: torch.Tensor
    end_logits: torch.Tensor


HeadOutput = Logits | SpanLogits


class Stepper(Protocol):
    """Makes one update from one batch, which all processes share."""

    rank: int
    device: torch.device

    def step(self, examples: list[Example], learning_rate: float) -> float:
        """Return the batch's mean loss; 0, without an update, if no token of it is labelled."""

    def logits(self, batch: dict[str, torch.Tensor]) -> HeadOutput:
        """Return the model's output for a batch, without dropout."""

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Return a copy of all weights in CPU memory; every rank must call it."""


class TorchStepper:
    """One process, plain torch."""

    rank = 0

    def __init__(self, model: torch.nn.Module, settings: TrainSettings, pad_id: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self.device)
        self._settings = settings
        self._pad_id = pad_id
        decayed, others = split_parameters(model.named_parameters())
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._parameters = decayed + others
        self._optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, eps=settings.adam_epsilon, fused=True
        )

    def step(self, examples: list[Example], learning_rate: float) -> float:
        """Make one update; see :class:`Stepper`."""
        if not scored_terms(examples):
            return 0.0  # the mean over nothing would be NaN
        self._model.train()
        batch = to_device(collate(examples, self._pad_id), self.device)
        with autocast(self.device, self._settings.precision):
            loss = mean_loss(self._model, batch)
        loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise BertdsError(
                f"fine-tuning: the loss became {value} at learning rate {learning_rate:.3g}; "
                "lower --learning-rate"
            )
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        clip_gradients(gradients, global_norm(gradients), self._settings.max_gradient_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return value

    def logits(self, batch: dict[str, torch.Tensor]) -> HeadOutput:
        """Run the model without dropout; see :class:`Stepper`."""
        self._model.eval()
        with torch.inference_mode(), autocast(self.device, self._settings.precision):
            return self._model(**to_device(batch, self.device))

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Return a copy of all weights; see :class:`Stepper`."""
        state = self._model.state_dict()
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def mean_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of a batch with targets: transformers', except that of spans.

    transformers' loss of a span counts padding as possible positions, and would thus depend on the
    rows that share a forward pass, on the micro batch and on the number of processes.
    """
    if "start_positions" not in batch:
        loss: torch.Tensor = model(**batch).loss
        return loss
    targets = (batch["start_positions"], batch["end_positions"])
    output = model(**{name: batch[name] for name in batch if not name.endswith("_positions")})
    padding = batch["attention_mask"] == 0
    start, end = (
        F.cross_entropy(logits.float().masked_fill(padding, -torch.inf), target)
        for logits, target in zip((output.start_logits, output.end_logits), targets, strict=True)
    )
    return (start + end) / 2


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context that computes in bfloat16 if requested."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move a batch to a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def learning_rate_at(step: int, total: int, settings: TrainSettings) -> float:
    """Return the rate of step 0, 1, ...: linear warm-up from 0, linear decay to 0.

    The same as transformers' ``get_linear_schedule_with_warmup``.
    """
    warmup = int(settings.warmup_ratio * total)
    if step < warmup:
        share = step / max(1, warmup)
    else:
        share = max(0.0, (total - step) / max(1, total - warmup))
    return settings.learning_rate * share


def train(stepper: Stepper, examples: Sequence[Example], settings: TrainSettings) -> TrainReport:
    """Train for ``settings.epochs`` over ``examples``."""
    began = spoken = time.perf_counter()
    per_epoch = math.ceil(len(examples) / settings.batch_size)
    total = max(1, round(settings.epochs * per_epoch))
    torch.manual_seed(settings.seed)  # dropout
    generator = torch.Generator().manual_seed(settings.seed)  # order
    lengths = [len(example) for example in examples]
    losses: list[float] = []
    while len(losses) < total:
        for rows in epoch_batches(lengths, settings.batch_size, settings.batching, generator):
            rate = learning_rate_at(len(losses), total, settings)
            losses.append(stepper.step([examples[row] for row in rows], rate))
            if time.perf_counter() - spoken > LOG_SECONDS:
                spoken = time.perf_counter()
                log.info("step %d of %d, loss %.4f", len(losses), total, losses[-1])
            if len(losses) == total:
                break
    tail = losses[-max(1, total // 10) :]
    return TrainReport(total, time.perf_counter() - began, sum(tail) / len(tail))


def predict(
    forward: Callable[[dict[str, torch.Tensor]], HeadOutput],
    examples: Sequence[Example],
    pad_id: int,
    batch_size: int = 64,
) -> list[tuple[torch.Tensor, ...]]:
    """Return the logits of each example, in the given order.

    Args:
        forward: takes a batch without targets and returns transformers' output.
        examples: in any order; they are batched by length.
        pad_id: of the tokenizer.
        batch_size: rows per forward pass.

    Returns:
        Per example a tuple of float32 CPU tensors: (logits,) or (start, end). Logits per token
        are cut to the example's own length.
    """
    results: list[Any] = [None] * len(examples)
    order = sorted(range(len(examples)), key=lambda row: len(examples[row]))
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        bare = [Example(examples[row].input_ids, examples[row].segment_ids) for row in rows]
        batch = collate(bare, pad_id)
        output = forward(batch)
        if isinstance(output, SpanLogits):
            outputs = [output.start_logits, output.end_logits]
        else:
            outputs = [output.logits]
        tensors = tuple(tensor.float().cpu() for tensor in outputs)
        # A head per token returns padding too, which is removed below.
        per_token = tensors[0].shape[1:2] == batch["input_ids"].shape[1:2] and (
            tensors[0].dim() == 3 or len(tensors) == 2
        )
        for place, row in enumerate(rows):
            length = len(examples[row]) if per_token else None
            results[row] = tuple(tensor[place][:length].clone() for tensor in tensors)
    return results
