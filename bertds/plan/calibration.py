"""What a run says about its machine: speed, row length, memory in addition to the tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bertds.config.load import load_config, read_yaml
from bertds.config.ramps import BatchRamp
from bertds.config.recipe import Config
from bertds.cost_model.flops import forward_backward_flops, mean_masked_per_row, parameter_count
from bertds.cost_model.hardware import Hardware, kind_of
from bertds.cost_model.memory import estimate
from bertds.cost_model.step_time import micro_batch_bytes, optimizer_bytes
from bertds.data.vocabulary import vocabulary_size
from bertds.engine.ds_config import check_deepspeed_values
from bertds.errors import ConfigError, DataError
from bertds.monitor.metrics_file import FILE
from bertds.monitor.run_files import at, read_metrics, read_object, starts_of
from bertds.training.will_it_fit import shape_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The measurements of one run."""

    run: str
    device: str
    """``cpu``, or the name of the GPU that the run used; "" for a GPU of an older run, which did
    not record its name."""
    precision: str
    """The precision of the run: ``fp32``, ``bf16``, ``fp16`` or ``autocast``."""
    sequence_length: int
    rate: float
    """Operations per second and device, including those of recomputed layers. With a
    ``memory_rate``, of the products alone, without the time of the optimizer and of moving weights
    and gradients."""
    tokens_per_row: float
    base_bytes: float
    """Memory in addition to what :func:`bertds.cost_model.memory.estimate` counts."""
    stall_share: float
    """Fraction of the time in which training waited for the loader."""
    memory_rate: float | None = None
    """Bytes of weights, gradients and moments per second in the optimizer. None if it was not
    measured: with several processes (whose time includes communication), or by older runs."""


def check_calibration(calibration: Calibration, hardware: Hardware, precision: str) -> None:
    """Refuse measurements of a different kind of device or a different precision.

    Raises:
        ConfigError: the run does not show how fast the planned one will be.
    """
    start = f"--calibrate {calibration.run}: that run trained on"
    on_cpu = calibration.device == "cpu"
    if on_cpu != (hardware.name == "cpu"):
        planned = "the CPU" if hardware.name == "cpu" else f"{hardware.name} GPUs"
        trained = "a CPU" if on_cpu else calibration.device or "a GPU"
        raise ConfigError(
            f"{start} {trained}, which does not apply to {planned}; plan with "
            f"{('--gpu cpu' if on_cpu else 'that --gpu')}, or omit --calibrate"
        )
    kind = None if on_cpu else kind_of(calibration.device)
    if kind is not None and kind.peak_half != hardware.peak_half:
        raise ConfigError(
            f"{start} {calibration.device}, which does not apply to {hardware.name} GPUs; plan "
            f"with --gpu {kind.name}, or omit --calibrate"
        )
    if (calibration.precision == "fp32") != (precision == "fp32"):
        raise ConfigError(
            f"{start} {calibration.device or 'a GPU'} in {calibration.precision}, but the plan is "
            f"for {precision}, which has a different speed; calibrate with a run in {precision}"
        )


def read_run(run: Path) -> tuple[Config, dict[str, Any], int, int]:
    """Return a run's recipe, DeepSpeed JSON, vocabulary size and world size.

    Raises:
        DataError: it is not a run folder.
    """
    for name in ("config.yaml", "deepspeed.json", FILE):
        if not (run / name).is_file():
            raise DataError(f"{run}: {name} is missing; give a run folder that has trained")
    from bertds.checkpoint.find import step_folders
    from bertds.checkpoint.manifest import read_manifest

    config = load_config(read_yaml(run / "config.yaml"))
    settings = _object(run / "deepspeed.json")
    folders = step_folders(run / "checkpoints")
    # A checkpoint knows the vocabulary and the number of ranks better than files that can be
    # edited.
    if folders:
        facts = read_manifest(folders[0])
        ranks, words = facts["world_size"], at(facts, "model.vocab_size", int, 0)
    else:
        starts = _starts(run)
        ranks, words = at(starts[-1], "world_size", int, 1) if starts else 1, 0
    return config, settings, words or vocabulary_size(run / "tokenizer"), ranks


def _object(path: Path) -> dict[str, Any]:
    problems: list[str] = []
    found = read_object(path, problems)
    for problem in problems:
        raise DataError(f"{path.parent}: {problem}")
    return found


def _starts(run: Path) -> list[dict[str, Any]]:
    return starts_of(_object(run / "environment.json"))


def device_of(run: Path, lines: list[dict[str, Any]]) -> str:
    """Return the device of a run, as in :attr:`Calibration.device`."""
    starts = _starts(run)
    if starts and "device" in starts[-1]:
        return str(starts[-1]["device"])
    return "" if "mfu" in lines[-1] else "cpu"  # MFU is never written on a CPU


def calibrate(run: Path) -> Calibration:
    """Read the measurements of a run.

    Raises:
        DataError: it has fewer than two train lines.
    """
    config, values, words, ranks = read_run(run)
    lines = read_metrics(run / FILE).train
    if len(lines) < 2:
        raise DataError(
            f"{run}: metrics.jsonl has fewer than 2 training lines; train until it has at least 2"
        )
    settings = check_deepspeed_values(values)
    device = device_of(run, lines)
    begin = max(1, len(lines) // 5)  # the first lines include compilation and warmup
    warm = lines[begin:]
    # Operations per token, from the rows that the run has actually seen.
    tokens = lines[-1]["tokens"] / lines[-1]["samples"]
    ramp = BatchRamp.of(config.schedule, settings.batch_plan(ranks))

    def per_token(first: int, last: int) -> float:
        masked = mean_masked_per_row(config, ramp, tokens, first, last)
        return forward_backward_flops(config.model, words, tokens, masked) / tokens

    again = 4 / 3 if config.model.activation_checkpointing == "full" else 1.0
    # Seconds per update, from consecutive lines.
    seconds = sum(line["seconds"] for line in warm)
    updates = [
        line.get("optimizer_seconds", 0.0) / (line["step"] - before["step"])
        for before, line in zip(lines[begin - 1 :], warm)
    ]
    memory_rate, outside = None, 1.0
    # One process: separate the time of the optimizer and of moving weights from that of the
    # products.
    if ranks == 1 and (of_one := median(updates)) > 0.0:
        count = parameter_count(config.model, words)
        memory_rate = optimizer_bytes(count, settings.optimizer.kind) / of_one
        moved = settings.batch_plan(ranks).gradient_accumulation_steps * micro_batch_bytes(
            count, settings.precision
        )
        of_step = seconds / (warm[-1]["step"] - lines[begin - 1]["step"])
        # At most half of the rest: caches can make the smallest models faster than this model.
        left = 1.0 - of_one / of_step
        outside = max(left / 2, left - moved / memory_rate / of_step)
    # Each line has its own masking rate, if the rate changes during the run.
    rates = [
        line["tokens_per_second"] * per_token(before["step"], line["step"])
        for before, line in zip(lines[begin - 1 :], warm)
    ]
    rate = median(rates) / ranks * again / outside
    base = 0.0
    if "memory_gib" in lines[-1]:
        # As the forecast counts it, so that nothing that it counts is part of the base.
        shape = shape_of(
            config,
            settings,
            settings.batch_plan(ranks),
            words,
            on_cpu=device == "cpu",
            tokens_per_row=tokens,
        )
        # From the first lines: later ones include holes in the heap, which are not estimated.
        early = lines[min(2, len(lines) - 1)].get("memory_gib", lines[-1]["memory_gib"])
        base = max(0.0, early * 2**30 - estimate(shape).total)
    return Calibration(
        run=str(run),
        device=device,
        precision=settings.precision,
        sequence_length=config.data.sequence_length,
        rate=rate,
        tokens_per_row=tokens,
        base_bytes=base,
        stall_share=sum(line["stall_seconds"] for line in warm) / max(seconds, 1e-9),
        memory_rate=memory_rate,
    )
