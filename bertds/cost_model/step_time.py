"""Estimates the time of a step and of a run: arithmetic, optimizer, network; energy, cost, volume.

```text
seconds per step = arithmetic + optimizer + communication that is not hidden + stragglers
```
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bertds.config.recipe import ModelConfig
from bertds.cost_model.flops import forward_backward_flops, parameter_count
from bertds.cost_model.hardware import Hardware
from bertds.cost_model.memory import BYTES, Shape

NETWORK_SHARE = 0.5
"""Fraction of a node's nominal network bandwidth that a large all-reduce reaches. DLE on 64 DGX-2H
lost 13% to it at one micro batch per step: 1.34 GB in about 30 ms, in addition to stragglers."""
LINK_SHARE = 0.7
"""The same fraction inside a node."""
STRAGGLERS_PER_DOUBLING = 0.01
"""Fraction of the arithmetic that each doubling of the nodes loses to the slowest one (from the
same figures)."""
FULL_TOKENS = 4096
"""Real tokens per micro batch at which a GPU reaches its full speed."""
HALF_TOKENS = 700
"""Smaller micro batches reach t / (t + this). DLE's V100: 125 sequences/s at 16, 182 at 64."""
WIDEST = 1024
"""Width of the model for which the fractions of the peak hold."""
WIDTH_POWER = 0.73
"""Narrower models reach (width / WIDEST) to this power of these fractions: ``train.py`` reached
38.5% of an H100's peak with BERT-base and 47.5% with BERT-large (128 tokens)."""
ADAM_BYTES = 28
"""Bytes per element: weight, gradient and two moments are read; weight and moments are written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds and bytes of one optimizer step on one device."""

    arithmetic: float
    optimizer: float
    communication: float
    exposed: float
    stragglers: float
    bytes_sent: float
    flops: float

    @property
    def total(self) -> float:
        """The duration of a step in seconds."""
        return self.arithmetic + self.optimizer + self.exposed + self.stragglers

    @property
    def bound_by(self) -> str:
        """The part that takes most of the step: the device or the network."""
        return "network" if self.exposed > self.arithmetic else "device"


def efficiency(hardware: Hardware, sequence_length: int) -> float:
    """Return the fraction of the peak, interpolated between the two published lengths."""
    low, high = hardware.efficiency_128, hardware.efficiency_512
    place = min(1.0, max(0.0, math.log2(sequence_length / 128) / 2))
    return low + (high - low) * place


def micro_batch_share(tokens: float, on_cpu: bool) -> float:
    """Return the fraction of the full speed for a micro batch of this number of tokens."""
    if on_cpu:
        return 1.0
    full = FULL_TOKENS / (FULL_TOKENS + HALF_TOKENS)
    return min(1.0, tokens / (tokens + HALF_TOKENS) / full)


def width_share(width: int) -> float:
    """Return the fraction of the table's speed that a model of this width reaches on a GPU."""
    return min(1.0, (width / WIDEST) ** WIDTH_POWER)


def optimizer_bytes(count: float, optimizer: str) -> float:
    """Return the bytes read and written by updating this number of elements."""
    return count * ADAM_BYTES * (1.5 if "lamb" in optimizer.lower() else 1.0)


def muon_flops(model: ModelConfig) -> float:
    """Return the operations of Muon per step: five iterations for each hidden matrix.

    A matrix of r rows and c >= r columns takes 4 r r c + 2 r r r per iteration.
    """
    h, wide = model.hidden_size, model.intermediate_size
    if model.style == "modern":  # joined: queries, keys and values; both halves of the gate
        layer = [(3 * h, h), (h, h), (2 * wide, h), (h, wide)]
    else:
        layer = [(h, h)] * 4 + [(wide, h), (h, wide)]
    heads = [(h, h)] * (2 if model.next_sentence else 1)  # the masked-LM head's, and the pooler
    shapes = map(sorted, [*layer * model.num_hidden_layers, *heads])
    return 5.0 * sum(4 * r * r * c + 2 * r**3 for r, c in shapes)


def micro_batch_bytes(count: float, precision: str) -> float:
    """Return the bytes that a micro batch moves regardless of its number of rows.

    The products read the weights in the forward and the backward pass, and write the gradients.
    These are read and added to those of the earlier micro batches.
    """
    return 6.0 * BYTES[precision] * count


def bytes_sent(shape: Shape, accumulation: int) -> tuple[float, float]:
    """Return the bytes that a device sends per step: gradients, and weights gathered.

    Ring algorithms: an all-reduce is a reduce-scatter and an all-gather, each (W - 1) / W of the
    vector. Stage 2 reduces each micro batch, stage 3 also gathers the weights twice for each.
    """
    ranks = shape.world_size
    vector: float = parameter_count(shape.model, shape.vocab_size) * shape.weight_bytes
    vector *= (ranks - 1) / ranks
    reduced = vector * (accumulation if shape.stage >= 2 else 1)
    gathered = vector * (2 * accumulation if shape.stage == 3 else 1)
    return reduced, gathered


def step_time(
    shape: Shape,
    hardware: Hardware,
    *,
    accumulation: int,
    devices_per_node: int,
    rate: float | None = None,
    memory_rate: float | None = None,
    overlap: bool = False,
) -> StepTime:
    """Return one optimizer step's seconds.

    Args:
        shape: what is trained.
        hardware: on what.
        accumulation: micro batches per step.
        devices_per_node: processes of a node.
        rate: measured operations per second and device, instead of the table's.
        memory_rate: measured bytes per second of the optimizer, instead of the table's; a ``rate``
            that came with it is that of the products alone.
        overlap: whether gradients travel during the backward pass (overlap_comm).
    """
    model = shape.model
    per_row = forward_backward_flops(
        model, shape.vocab_size, shape.tokens_per_row, shape.masked_per_row
    )
    flops = per_row * shape.micro_batch * accumulation
    if rate is None:
        rate = hardware.peak(shape.precision) * efficiency(hardware, shape.sequence_length)
        rate *= micro_batch_share(shape.micro_batch * shape.tokens_per_row, shape.on_cpu)
        rate *= 1.0 if shape.on_cpu else width_share(model.hidden_size)
    again = 4 / 3 if model.activation_checkpointing == "full" else 1.0
    arithmetic = flops * again / rate
    count = parameter_count(model, shape.vocab_size)
    if memory_rate is not None:
        arithmetic += accumulation * micro_batch_bytes(count, shape.precision) / memory_rate
    mine = count / (shape.world_size if shape.stage >= 1 else 1)
    products = 0.0
    if memory_rate is None:
        memory_rate = 0.7 * hardware.memory_bandwidth
        if shape.optimizer == "Muon":  # a measured rate has them in it
            # The ranks share them from stage 1 on.
            products = muon_flops(model) / (shape.world_size if shape.stage >= 1 else 1) / rate
    optimizer = products + optimizer_bytes(mine, shape.optimizer) / memory_rate
    nodes = max(1, shape.world_size // devices_per_node)
    reduced, gathered = bytes_sent(shape, accumulation)
    speed = hardware.link_bandwidth * LINK_SHARE
    if nodes > 1:
        speed = min(speed, hardware.network_bandwidth * NETWORK_SHARE)
    communication = (reduced + gathered) / speed
    hidden = 0.0
    if overlap or shape.stage == 3:
        window = arithmetic * (2 / 3) / (1 if shape.stage >= 2 else accumulation)
        hidden = min(reduced / speed + (gathered / speed if shape.stage == 3 else 0.0), window)
    return StepTime(
        arithmetic=arithmetic,
        optimizer=optimizer,
        communication=communication,
        exposed=communication - hidden,
        stragglers=arithmetic * STRAGGLERS_PER_DOUBLING * math.log2(nodes),
        bytes_sent=reduced + gathered,
        flops=flops,
    )
