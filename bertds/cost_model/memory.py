"""Estimates the memory of one process: ZeRO's state, activations for the backward pass, buffers.

Counted in bytes, tensor by tensor, from what bertds/model and DeepSpeed 0.19.8 hold at their peak.
The peak can be at two moments: the end of the last forward pass (all activations, the logits) and
the optimizer step (all gradients and its temporaries).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from bertds.config.padded_vocabulary import padded_vocabulary
from bertds.config.recipe import ModelConfig
from bertds.cost_model.flops import parameter_count

GPU_BASE = 1.2 * 2**30
"""CUDA context, cuBLAS and NCCL buffers of one process."""
CPU_BASE = 0.3 * 2**30
"""Python, torch and DeepSpeed when loaded, without pages of files: 0.25 GiB measured
(system/memory.py), and an assumed amount for the process group and the loader's threads."""
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "autocast": 2}
FRAGMENTS = {True: 0.13, False: 0.05}
"""Fraction that the allocator holds in addition to requests, on CPU and on GPU. CPU: fitted to the
runs of docs/planning.md; GPU: assumed."""
RECOMPUTED = {True: 0.2, False: 0.0}
"""With activation checkpointing, what each layer leaves in memory after its backward pass, as a
fraction of what a layer keeps without it and without dropout. CPU: holes in the heap, fitted to the
same runs; GPU: assumed."""
ZERO_CODE = 45 * 2**20
"""On a CPU: bytes of the modules that DeepSpeed's ZeRO stages import and stage 0 does not (torch's
inductor, networkx); measured."""
GATHERED = 1_000_000_000
"""stage3_max_live_parameters, DeepSpeed's default."""
CHUNK_BYTES = {True: 1 << 28, False: 1 << 29}
"""bertds.model.losses.CHUNK_BYTES on a CPU and GPU_CHUNK_BYTES, without importing torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The quantities that decide the memory of one process."""

    model: ModelConfig
    vocab_size: int
    sequence_length: int
    tokens_per_row: float
    masked_per_row: float
    """For memory at the highest masking rate of a run, for time at the mean one."""
    micro_batch: int
    precision: str
    stage: int
    world_size: int
    optimizer: str
    on_cpu: bool
    offload: bool = False
    bucket: int = 500_000_000
    """reduce_bucket_size, in elements; DeepSpeed's default is 5e8."""
    overlap: bool = False
    """overlap_comm of the JSON; at stages 1 and 2 it doubles the bucket's buffer."""
    sums: int = 4
    """Bytes per element in which the gradients of micro batches are summed."""
    average: bool = False
    """Whether a moving average of the weights is kept."""
    packed: int = 0
    """``data.pack_tokens``: micro batches are padded to a multiple of this number of tokens."""

    @property
    def micro_batch_tokens(self) -> float:
        """Tokens of a micro batch, fillers included."""
        real = self.micro_batch * self.tokens_per_row
        return ceil(real / self.packed) * self.packed if self.packed else real

    @property
    def is_half(self) -> bool:
        """Whether weights are in bf16 or fp16; autocast keeps them in float32."""
        return self.precision in ("bf16", "fp16")

    @property
    def weight_bytes(self) -> int:
        """Bytes per element of the weights and of a micro batch's gradients."""
        return 2 if self.is_half else 4

    @property
    def uses_bf16_wrapper(self) -> bool:
        """Whether DeepSpeed uses ``BF16_Optimizer``, which has no buckets."""
        half = self.precision == "bf16" and self.sums == 4
        return half and self.stage == 1 and not self.offload


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """The memory of one process by use, in bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    fragments: float
    base: float

    @property
    def total(self) -> float:
        """The sum of all uses."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.buffers
            + self.fragments
            + self.base
        )


def layer_bytes(shape: Shape) -> float:
    """Return what one encoder layer keeps for its backward pass, for the whole micro batch.

    On a GPU the flash kernels keep queries, keys, values and output; on a CPU the products of
    :func:`bertds.model.attention_kernels.grouped_attention` keep the attention weights too.
    """
    model = shape.model
    width, inner = model.hidden_size, model.intermediate_size
    size = BYTES[shape.precision]
    tokens = shape.micro_batch_tokens
    hidden, attention = model.hidden_dropout_prob > 0, model.attention_probs_dropout_prob > 0
    if model.style == "modern":
        return _modern_layer_bytes(shape)
    weights = 3 * width * width * size  # the concatenated weights of queries, keys and values
    if not shape.on_cpu:
        # layer input, q k v, context, sums before both LayerNorms, first LayerNorm's output
        values = (8 * width + 2 * inner) * size + (2 * width if hidden else 0)
        values += 4 * model.num_attention_heads + 16
        return tokens * values + weights
    numbers: float = 8 * width + 2 * inner + 4
    numbers += 2 * width if hidden else 0  # the dropout noise of both sums
    per_row = model.num_attention_heads * mean_square(shape) / shape.tokens_per_row
    numbers += per_row * (3 if attention else 1)
    return (tokens * numbers + 3 * width * width) * 4


def _modern_layer_bytes(shape: Shape) -> float:
    """Like :func:`layer_bytes`, the mean of a modern encoder's global and local layers.

    Pre-LayerNorm keeps the residual sums and both normalized inputs. Queries and keys are kept
    after rotation. The gated layer keeps both halves, the activated one and their product.
    """
    model = shape.model
    width, inner = model.hidden_size, model.intermediate_size
    size = 4 if shape.on_cpu else BYTES[shape.precision]
    tokens = shape.micro_batch_tokens
    # two residual sums, two normalized inputs, q k v, context
    numbers: float = 8 * width + 4 * inner
    numbers += inner if model.hidden_dropout_prob > 0 else 0
    attention = model.attention_probs_dropout_prob > 0
    numbers += width if attention else 0
    if not shape.on_cpu:
        return tokens * (numbers * size + 4 * model.num_attention_heads + 16)
    every = model.global_attn_every_n_layers
    local_share = (every - 1) / every
    seen = mean_square(shape) / shape.tokens_per_row  # attention weights of one token and head
    blocks = 1.5 * model.local_attention  # three blocks of half a window, for long rows
    if shape.tokens_per_row > blocks:
        seen = (1 - local_share) * seen + local_share * blocks
        numbers += local_share * 4 * width  # each key and value is in three windows
    numbers += model.num_attention_heads * seen * (3 if attention else 1)
    return tokens * (numbers + 4) * 4


def mean_square(shape: Shape) -> float:
    """Return the mean of the squared row length; most rows are full, and some are short."""
    mean, longest = shape.tokens_per_row, shape.sequence_length
    return mean * longest * 0.985 if mean < longest else mean * mean


def activations(shape: Shape) -> float:
    """Return the activations at the end of a forward pass, and the temporaries of that moment."""
    model = shape.model
    width = model.hidden_size
    size = 4 if shape.on_cpu else BYTES[shape.precision]
    tokens = shape.micro_batch_tokens
    masked = shape.micro_batch * shape.masked_per_row
    layers = model.num_hidden_layers
    one = layer_bytes(shape)
    kept = layers * one
    # Recomputation keeps only the input of each layer, and one layer's activations at a time.
    if model.activation_checkpointing == "full":
        plain = layer_bytes(
            replace(
                shape,
                model=replace(model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
            )
        )
        kept = layers * tokens * width * size + one + layers * RECOMPUTED[shape.on_cpu] * plain
    embeddings = tokens * width * size * (3 if model.hidden_dropout_prob > 0 else 2)
    words = padded_vocabulary(shape.vocab_size)
    head = words * width * size + masked * width * size * 5
    # A chunk of logits exists three times: as computed, in float32, and as log-softmax.
    chunk = min(masked, max(64, CHUNK_BYTES[shape.on_cpu] // (4 * words)))
    logits = chunk * words * (4 + 4 + (size if size < 4 else 0))
    # The backward pass of the first layers: gradients in addition to what is still kept.
    widened = 4 if model.style == "modern" else 2
    backward = tokens * (widened * model.intermediate_size + 2 * width) * size
    return kept + embeddings + head + max(logits, backward)


def estimate(shape: Shape, base: float = 0.0) -> Memory:
    """Return the memory of one process at its peak.

    Args:
        shape: the model and how it is trained.
        base: bytes in use without any of it (Python, torch, the CUDA context).
    """
    count = parameter_count(shape.model, shape.vocab_size)
    ranks, stage = shape.world_size, shape.stage
    size, sums = shape.weight_bytes, shape.sums
    # Weights and gradients, as the ZeRO stage partitions them.
    weights = count * size / (ranks if stage == 3 else 1)
    if stage >= 2:
        gradients = count * sums / ranks
        if stage == 2 and shape.offload and sums != size:
            gradients += count * size / ranks  # those of the micro batch, until it is done
    elif shape.precision == "fp16" and not shape.offload:
        gradients = count * sums  # a gradient is released when it has been added to its sum
    else:
        # Sums of another dtype exist in addition to the gradients of the micro batch.
        gradients = count * (size + (sums if sums != size else 0))
    # Master weights and both moments in float32; at stage 0 in fp32 the weights are the masters.
    states = count * (12 if stage >= 1 or shape.is_half else 8) / (ranks if stage >= 1 else 1)
    # A float32 copy of the gradient partition; sums in float32 at stages 1 and 2 need none, and an
    # offloaded optimizer always has one.
    in_float32 = shape.is_half and sums == 4 and stage < 3
    step = 0.0 if stage == 0 or in_float32 or shape.offload else count * 4 / ranks
    if shape.average:
        states += count * 4 / (ranks if stage >= 1 else 1)
    if shape.offload and shape.on_cpu:
        # The float32 gradients, and at stages 1 and 2 the sums if they have the gradients' dtype.
        states += count * (4 + (size if sums == size and stage < 3 else 0)) / ranks
    elif shape.offload:
        states = 0.0
    # DeepSpeed allocates the whole bucket. On a CPU, pages that are never written cost nothing.
    bucket = min(shape.bucket, count) if shape.on_cpu else shape.bucket
    staged = sums if stage == 1 else size
    buffers = float(bucket * staged * (2 if shape.overlap and stage < 3 else 1))
    if stage == 0 or shape.uses_bf16_wrapper:
        buffers = 0.0  # gradients are averaged in place
    if shape.offload and stage < 3:  # a copy of the largest gradient on its way, on either side
        words = padded_vocabulary(shape.vocab_size)
        buffers += words * shape.model.hidden_size * size * (2 if shape.on_cpu else 1)
    if stage == 3 and ranks > 1:
        buffers += min(count, GATHERED) * size  # gathered weights, until they are released
    live = activations(shape)
    # Activations and the step's temporaries do not exist at the same time: count the larger.
    live = max(live, step)
    asked = weights + gradients + states + live + buffers
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=states,
        activations=live,
        buffers=buffers,
        fragments=FRAGMENTS[shape.on_cpu] * asked,
        base=base + (ZERO_CODE if shape.on_cpu and stage >= 1 else 0),
    )
