"""Compares the planner's memory forecast with the machine before anything is built.

A run that does not fit is refused with what to change. Otherwise the kernel would kill it without a
message, or a GPU would run out of memory after minutes of building. ``run.ignore_memory`` trains
anyway.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from bertds.config.batch_plan import BatchPlan
from bertds.config.ramps import BatchRamp
from bertds.config.recipe import Config
from bertds.cost_model.flops import masked_per_row, mean_masked_per_row, mean_tokens
from bertds.cost_model.hardware import cpu
from bertds.cost_model.memory import BYTES, CPU_BASE, GPU_BASE, Shape, estimate
from bertds.cost_model.step_time import step_time
from bertds.distributed.rank_info import RankInfo
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.errors import ConfigError
from bertds.system.memory import cpu_memory_available

MOST_CPU_DAYS = 30.0
"""A half-precision run that would take longer than this on a CPU was meant for GPUs."""
_GO_ON = "use --set run.ignore_memory=true to train anyway"


def shape_of(
    config: Config,
    settings: DeepSpeedSettings,
    batch: BatchPlan,
    vocab_size: int,
    *,
    on_cpu: bool,
    tokens_per_row: float | None = None,
    stage: int | None = None,
) -> Shape:
    """Return the quantities that decide the memory of one process.

    Args:
        config: the recipe.
        settings: the DeepSpeed JSON.
        batch: how a step's rows are divided.
        vocab_size: number of tokens of the vocabulary.
        on_cpu: whether a CPU trains.
        tokens_per_row: mean number of real tokens per row; None = that of Wikipedia.
        stage: replaces the JSON's ZeRO stage.
    """
    length = config.data.sequence_length
    tokens = min(float(length), tokens_per_row or mean_tokens(length))
    # A masking rate may change during the run: its highest value decides the peak of the memory.
    rate = max(config.data.masked_lm_prob, config.data.masked_lm_prob_end or 0.0)
    most = config.data.max_predictions_per_sequence
    packed = config.data.pack_tokens  # then the masked positions are padded too
    zero = settings.values.get("zero_optimization", {})
    return Shape(
        model=config.model,
        vocab_size=vocab_size,
        sequence_length=length,
        tokens_per_row=tokens,
        masked_per_row=most if packed else masked_per_row(tokens, rate, most),
        micro_batch=batch.micro_batch_size,
        precision=settings.precision,
        stage=settings.stage if stage is None else stage,
        world_size=batch.world_size,
        optimizer=settings.optimizer.kind,
        on_cpu=on_cpu,
        offload=settings.offloads_optimizer,
        bucket=int(zero.get("reduce_bucket_size", 500_000_000)),
        overlap=zero.get("overlap_comm", False),
        sums=BYTES[settings.values.get("data_types", {}).get("grad_accum_dtype", "fp32")],
        average=config.schedule.ema_decay > 0,
        packed=packed,
    )


def timed_shape(config: Config, shape: Shape, batch: BatchPlan, steps: int) -> Shape:
    """Return a shape for the mean time of a run's first ``steps`` steps.

    :func:`shape_of` counts the masked tokens at the highest rate of the run, which decides the
    memory; the mean rate decides the time.
    """
    ramp = BatchRamp.of(config.schedule, batch)
    masked = mean_masked_per_row(config, ramp, shape.tokens_per_row, last=steps)
    return replace(shape, masked_per_row=masked)


def check_fits(
    config: Config, settings: DeepSpeedSettings, place: RankInfo, vocab_size: int
) -> None:
    """Refuse a run whose forecast is above the free memory, or that needs a GPU and has none.

    Args:
        config: the recipe.
        settings: the DeepSpeed JSON; if the micro batch is "auto", one row is counted.
        place: this process among those of the run.
        vocab_size: number of tokens of the data's vocabulary.

    Raises:
        ConfigError: names what is needed, what is available, and what to change.
    """
    if config.run.ignore_memory:
        return
    import torch  # `bertds plan` uses this module and needs none

    on_cpu = not torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu"
    if settings.finds_micro_batch:
        settings = replace(settings, train_micro_batch_size_per_gpu=1)
    batch = settings.batch_plan(place.world_size)
    shape = shape_of(config, settings, batch, vocab_size, on_cpu=on_cpu)
    # The processes of one machine share its memory; each GPU has its own.
    if on_cpu:
        _check_time(config, settings, shape, batch)
        here = processes_here(place.world_size)
        free, what = cpu_memory_available() / here, "of this machine"
        if here > 1:
            what += f" for each of its {here} processes"
    else:
        device = place.local_rank % torch.cuda.device_count()
        free, what = float(torch.cuda.mem_get_info(device)[0]), f"on GPU {device}"
    # The base is what a process occupies before it has a model: libraries and the CUDA context.
    base = CPU_BASE if on_cpu else GPU_BASE
    needed = estimate(shape, base).total
    if needed > free:
        none = "; this machine has no GPU" if on_cpu and settings.precision != "fp32" else ""
        raise ConfigError(
            f"{settings.path}: about {needed / 2**30:.1f} GiB per process are needed, but only "
            f"{free / 2**30:.1f} GiB {what} are free{none}; {_remedy(shape, base, free)}; {_GO_ON}"
        )


def processes_here(world_size: int, environment: Mapping[str, str] | None = None) -> int:
    """Return how many of the run's processes share this machine; all of them where unknown."""
    values = os.environ if environment is None else environment
    # Set by torchrun and our own launcher, and by DeepSpeed's launcher.
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if values.get(name, "").isdigit():
            return max(1, min(world_size, int(values[name])))
    # Only Slurm is left: assume that ranks are spread evenly over the nodes.
    nodes = values.get("SLURM_STEP_NUM_NODES", values.get("SLURM_NNODES", "1"))
    return -(-world_size // max(1, int(nodes) if nodes.isdigit() else 1))


def _check_time(
    config: Config, settings: DeepSpeedSettings, shape: Shape, batch: BatchPlan
) -> None:
    """Refuse a DeepSpeed JSON for GPUs on a machine that has none."""
    # A JSON in fp32 is meant for a CPU, and a clock budget limits the time anyway.
    if settings.precision == "fp32" or config.schedule.clock_hours is not None:
        return
    accumulation = batch.gradient_accumulation_steps
    steps = config.schedule.total_steps
    timed = timed_shape(config, shape, batch, steps)
    step = step_time(timed, cpu(), accumulation=accumulation, devices_per_node=1).total
    rows = BatchRamp.of(config.schedule, batch).samples(steps)
    days = rows / batch.global_batch_size * step / 86400
    if days > MOST_CPU_DAYS:
        years = f"{days / 365:,.0f} years" if days > 730 else f"{days:,.0f} days"
        raise ConfigError(
            f"{settings.path}: this JSON is for GPUs ({settings.precision}, micro batch "
            f"{batch.micro_batch_size}), but this machine has none: {steps:,} steps of "
            f"{batch.global_batch_size:,} rows would take about {years} on its CPU; train on a "
            "GPU, or try --config tiny_cpu_phase1 --deepspeed_config tiny_cpu_phase1 here; "
            f"{_GO_ON}"
        )


def _remedy(shape: Shape, base: float, free: float) -> str:
    """Return the smallest change after which the run fits, as command-line settings."""

    def fits(changed: Shape) -> bool:
        return estimate(changed, base).total <= free

    def largest(changed: Shape) -> int:
        # Only divisors of the micro batch keep the global batch unchanged.
        rows = shape.micro_batch
        while rows > 1 and not fits(replace(changed, micro_batch=rows)):
            rows = next(n for n in range(rows - 1, 0, -1) if shape.micro_batch % n == 0)
        return rows if fits(replace(changed, micro_batch=rows)) else 0

    # Cheapest first: a smaller micro batch, then recomputation, then a higher ZeRO stage.
    rows = largest(shape)
    key = "deepspeed.train_micro_batch_size_per_gpu"
    if rows:
        return f"--set {key}={rows} fits (the global batch stays the same)"
    checkpointed = replace(shape, model=replace(shape.model, activation_checkpointing="full"))
    rows = largest(checkpointed)
    if rows:
        return f"--set model.activation_checkpointing=full {key}={rows} fits"
    for stage in range(shape.stage + 1, 4) if shape.world_size > 1 else ():
        rows = largest(replace(checkpointed, stage=stage))
        if rows:
            return (
                f"--set deepspeed.zero_optimization.stage={stage} "
                f"model.activation_checkpointing=full {key}={rows} fits"
            )
    return "not even one row fits; use a smaller model, more processes or a larger machine"
