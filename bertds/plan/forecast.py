"""Forecasts one run: memory, time, energy, cost and disk from recipe, JSON and machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bertds.config.batch_plan import BatchPlan
from bertds.config.ramps import BatchRamp
from bertds.config.recipe import Config
from bertds.cost_model.flops import parameter_count
from bertds.cost_model.hardware import Hardware
from bertds.cost_model.memory import CPU_BASE, GPU_BASE, Memory, Shape, estimate
from bertds.cost_model.step_time import StepTime, step_time
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.plan.calibration import Calibration
from bertds.training.will_it_fit import shape_of, timed_shape

STARTUP_SECONDS = 120.0
"""Time from the launch to the first step: imports, process groups, checks of shards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The forecast of one phase."""

    shape: Shape
    batch: BatchPlan
    memory: Memory
    step: StepTime
    steps: int
    samples: int
    """Number of rows; less than steps times batch if the batch grows."""
    hardware: Hardware
    price: float
    calibrated: bool

    @property
    def fits(self) -> bool:
        """Whether the peak stays below 95% of the device's memory."""
        return self.memory_gib <= 0.95 * self.hardware.memory_gib

    @property
    def memory_gib(self) -> float:
        """The peak of one process in GiB."""
        return self.memory.total / 2**30

    @property
    def hours(self) -> float:
        """Wall-clock hours of the phase."""
        return (self.full_steps * self.step.total + STARTUP_SECONDS) / 3600

    @property
    def full_steps(self) -> float:
        """Number of steps with the full batch that would use the same number of rows."""
        return self.samples / self.batch.global_batch_size

    @property
    def tokens(self) -> float:
        """Number of real tokens."""
        return self.samples * self.shape.tokens_per_row

    @property
    def flops(self) -> float:
        """Operations of the whole phase on all devices."""
        return self.full_steps * self.step.flops * self.batch.world_size

    @property
    def mfu(self) -> float:
        """Model operations divided by the peak operations of the devices in the time of a step."""
        return self.step.flops / self.step.total / self.hardware.peak(self.shape.precision)

    @property
    def device_hours(self) -> float:
        """Hours times devices."""
        return self.hours * self.batch.world_size

    @property
    def kilowatt_hours(self) -> float:
        """Energy of the devices and their nodes, without cooling."""
        return self.device_hours * self.hardware.watts / 1000

    @property
    def dollars(self) -> float:
        """The cost at the given price per device and hour."""
        return self.device_hours * self.price

    @property
    def checkpoint_gib(self) -> float:
        """Size of a checkpoint: float32 weights, both moments, and the average if there is one."""
        size = 16 if self.shape.average else 12
        return size * parameter_count(self.shape.model, self.shape.vocab_size) / 2**30


def overlaps(settings: DeepSpeedSettings, shape: Shape) -> bool:
    """Return whether gradients are communicated during the backward pass.

    ``overlap_comm`` has no effect in DeepSpeed 0.19.8's BF16 optimizer, which is used at stage 1 in
    bf16 with float32 sums: it reduces after the last backward pass.
    """
    wanted = settings.values.get("zero_optimization", {}).get("overlap_comm", False)
    return bool(wanted) and not shape.uses_bf16_wrapper


def forecast(
    config: Config,
    settings: DeepSpeedSettings,
    hardware: Hardware,
    *,
    nodes: int,
    devices_per_node: int,
    vocab_size: int = 30522,
    tokens_per_row: float | None = None,
    calibration: Calibration | None = None,
    price: float | None = None,
    micro_batch: int | None = None,
    stage: int | None = None,
) -> Forecast:
    """Forecast one phase.

    Raises:
        ConfigError: the global batch cannot be divided for this number of devices.
    """
    if micro_batch:
        settings = replace(settings, train_micro_batch_size_per_gpu=micro_batch)
    batch = settings.batch_plan(nodes * devices_per_node)
    known = None  # rows of a different length do not apply
    if calibration is not None and calibration.sequence_length == config.data.sequence_length:
        known = calibration.tokens_per_row
    on_cpu = hardware.name == "cpu"
    if on_cpu:  # its processes share the machine's memory
        hardware = replace(hardware, memory_gib=hardware.memory_gib / devices_per_node)
    shape = shape_of(
        config,
        settings,
        batch,
        vocab_size,
        on_cpu=on_cpu,
        tokens_per_row=tokens_per_row or known,
        stage=stage,
    )
    # A calibration replaces the assumed base memory and speeds.
    base = CPU_BASE if on_cpu else GPU_BASE
    if calibration and calibration.base_bytes:
        base = calibration.base_bytes
    memory = estimate(shape, base)

    def mean_step(steps: int) -> StepTime:
        return step_time(
            timed_shape(config, shape, batch, steps),
            hardware,
            accumulation=batch.gradient_accumulation_steps,
            devices_per_node=devices_per_node,
            rate=calibration.rate if calibration else None,
            memory_rate=calibration.memory_rate if calibration else None,
            overlap=overlaps(settings, shape),
        )

    steps = config.schedule.total_steps
    step = mean_step(steps)
    if config.schedule.clock_hours is not None:  # the run ends with whichever is first
        steps = min(steps, max(1, round(config.schedule.clock_hours * 3600 / step.total)))
        step = mean_step(steps)  # the masking rates of these steps only
    return Forecast(
        shape=shape,
        batch=batch,
        memory=memory,
        step=step,
        steps=steps,
        samples=BatchRamp.of(config.schedule, batch).samples(steps),
        hardware=hardware,
        price=hardware.dollars_per_hour if price is None else price,
        calibrated=calibration is not None,
    )
