"""``"train_micro_batch_size_per_gpu": "auto"``: the largest micro batch that fits the memory.

    two passes over rows of full length --> bytes per row --> largest divisor that fits --> tried
                                                                    |  (GPU: at most GPU_TOKENS,
                                                                    |   and for real)
                                       answer kept in ~/.cache/bertds/micro_batch.json

The tensors kept for the backward pass grow linearly with the rows, so two small measurements give
the slope: on a GPU the allocator's peak, on a CPU the bytes of the tensors that autograd saves.
What ZeRO keeps in addition is estimated as in ``bertds plan``. The answer is cached per machine,
model, precision, ZeRO stage and number of processes, so that a resumed run divides its batches as
before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bertds.config.batch_plan import BatchPlan
from bertds.config.load import to_dict
from bertds.config.recipe import Config
from bertds.cost_model.memory import FRAGMENTS, Shape, estimate
from bertds.distributed.rank_info import RankInfo
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.engine.process_group import start_processes
from bertds.errors import ConfigError
from bertds.model.build import PreTrainingModel
from bertds.system.logs import log
from bertds.system.memory import cpu_memory_available, cpu_memory_total
from bertds.training.micro_batch_cache import answers_file, keep_answer, read_answer
from bertds.training.will_it_fit import processes_here, shape_of

SHARE = 0.85
"""The fraction of the free memory that may be used."""
PROBES = (1, 3)
"""Rows of the two measurements."""
ROOM = 0.05
"""The fraction of a trial's expected memory that must be free in addition (on a GPU)."""
GPU_TOKENS = 65_536
"""On a GPU the search starts from micro batches of this number of tokens in full rows. Its kernels
are then long enough that the host is never the limit, and larger ones gain nothing."""


def choose_micro_batch(
    model: PreTrainingModel, config: Config, settings: DeepSpeedSettings, place: RankInfo
) -> DeepSpeedSettings:
    """Return the settings with a number in place of "auto". Collective.

    Raises:
        ConfigError: the processes do not divide the global batch, or not a single row fits.
    """
    if not settings.finds_micro_batch:
        return settings
    # The smallest global batch of the run is what the micro batch must divide.
    smallest = config.schedule.batch_from or settings.train_batch_size
    # Raises if the processes do not divide it.
    BatchPlan(global_batch_size=smallest, micro_batch_size=1, world_size=place.world_size)
    # Measuring on a GPU and comparing the ranks both need the process group.
    _, device = start_processes(settings.values.get("log_level"))
    facts = describe(model, config, settings, place, device)
    found = read_answer(facts)
    if found is None:
        per_rank = smallest // place.world_size
        found = search(model, config, settings, place, device, per_rank)
        log.info("micro batch %d found (%s)", found, answers_file())
    if place.world_size > 1:  # machines may differ: use what the smallest can hold
        all_found: list[Any] = [None] * place.world_size
        dist.all_gather_object(all_found, found)
        found = min(all_found)
    if place.local_rank == 0:
        keep_answer(facts, found)
    values = {**settings.values, "train_micro_batch_size_per_gpu": found}
    return replace(settings, values=values, train_micro_batch_size_per_gpu=found)


def search(
    model: PreTrainingModel,
    config: Config,
    settings: DeepSpeedSettings,
    place: RankInfo,
    device: torch.device,
    per_rank: int,
) -> int:
    """Return the largest divisor of a rank's rows whose memory fits."""
    # Measured on a copy in the run's precision: the caller's weights must keep their fp32 values.
    precision = settings.precision
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    trial_model = copy.deepcopy(model).to(device, dtype).train()

    def measure(rows: int) -> float:
        autocast: AbstractContextManager[Any] = nullcontext()
        if precision == "autocast":
            autocast = torch.autocast(device.type, torch.bfloat16)
        with autocast:
            return measured_bytes(trial_model, full_rows(config, rows, device))

    # bytes(rows) = kept + few + slope * (rows - PROBES[0]) must stay within the limit.
    limit = memory_limit(config, place, device)
    kept = state_bytes(model, config, settings, place, device)
    few, more = (measure(rows) for rows in PROBES)
    slope = (more - few) / (PROBES[1] - PROBES[0])
    most = (limit - kept - few) / max(slope, 1.0) + PROBES[0]
    # Only a divisor of the rank's rows gives a whole number of accumulation steps.
    divisors = [rows for rows in range(1, per_rank + 1) if per_rank % rows == 0]
    fitting = [rows for rows in divisors if rows <= most]
    if not fitting:
        raise ConfigError(
            f'{settings.path}: train_micro_batch_size_per_gpu="auto": not even one row of '
            f"{config.data.sequence_length} tokens fits: {(kept + few) / 2**30:.2f} GiB are "
            f"needed, but only {limit / 2**30:.2f} GiB may be used; use a higher ZeRO stage, "
            "offload or model.activation_checkpointing=full"
        )
    # On a CPU a trial that runs out of memory would be killed by the kernel, so the estimate is
    # final.
    if device.type != "cuda":
        return fitting[-1]

    def run(rows: int) -> None:
        # The trial gets no more memory than the run will have. What ZeRO keeps is allocated first,
        # and a margin, because fragmented free memory cannot hold a large tensor.
        room = ROOM * (few + slope * (rows - PROBES[0]))
        taken = torch.empty(int(kept + room), dtype=torch.uint8, device=device)
        measure(rows)
        del taken

    return largest_that_runs(worth_trying(fitting, config.data.sequence_length), run)


def worth_trying(candidates: list[int], sequence_length: int) -> list[int]:
    """Return the candidates of at most ``GPU_TOKENS`` tokens, or the smallest if there are none."""
    few = [rows for rows in candidates if rows * sequence_length <= GPU_TOKENS]
    return few or candidates[:1]


def largest_that_runs(candidates: list[int], run: Callable[[int], Any]) -> int:
    """Return the largest candidate that does not run out of memory; the smallest if all do."""
    for rows in reversed(candidates[1:]):
        if _runs(run, rows):
            return rows
        # Not inside _runs: there the exception still holds what the trial had allocated.
        torch.cuda.empty_cache()
    return candidates[0]


def _runs(run: Callable[[int], Any], rows: int) -> bool:
    try:
        run(rows)
    except torch.OutOfMemoryError:
        return False
    return True


def measured_bytes(model: PreTrainingModel, inputs: dict[str, Any]) -> float:
    """Return what one forward and backward pass adds to the memory at its peak, in bytes."""
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _run(model, inputs)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        model.zero_grad(set_to_none=True)
        return float(peak)
    # A CPU has no peak counter. Count each storage that autograd saves once; the weights are in
    # memory already.
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _run(model, inputs)
    model.zero_grad(set_to_none=True)
    return sum(kept.values()) * (1.0 + FRAGMENTS[True])


def _run(model: PreTrainingModel, inputs: dict[str, Any]) -> None:
    output = model(**inputs)
    (output.mlm_loss_sum + output.nsp_loss_sum).backward()


def full_rows(config: Config, rows: int, device: torch.device) -> dict[str, Any]:
    """Return the largest micro batch of this number of rows: all full, all predictions used."""
    length, most = config.data.sequence_length, config.data.max_predictions_per_sequence
    positions = torch.arange(length).repeat(rows)
    masked = (torch.arange(rows)[:, None] * length + torch.arange(most)).flatten()
    tensors = {
        "input_ids": positions.clone(),
        "segment_ids": torch.zeros_like(positions),
        "position_ids": positions,
        "cu_seqlens": torch.arange(rows + 1, dtype=torch.int32) * length,
        "masked_lm_positions": masked,
        "masked_lm_ids": torch.zeros_like(masked),
        "next_sentence_labels": torch.zeros(rows, dtype=torch.int64),
    }
    tensors["input_ids"] %= 5  # ids that every vocabulary has
    return {name: t.to(device) for name, t in tensors.items()} | {"max_seqlen": length}


def _shape(
    model: PreTrainingModel,
    config: Config,
    settings: DeepSpeedSettings,
    place: RankInfo,
    device: torch.device,
) -> Shape:
    """Return the quantities of one process that do not depend on the micro batch, with one row."""
    one = BatchPlan(
        global_batch_size=place.world_size, micro_batch_size=1, world_size=place.world_size
    )
    return shape_of(config, settings, one, model.vocab_size, on_cpu=device.type == "cpu")


def state_bytes(
    model: PreTrainingModel,
    config: Config,
    settings: DeepSpeedSettings,
    place: RankInfo,
    device: torch.device,
) -> float:
    """Return the bytes of weights, gradients, optimizer and ZeRO's buffers on one process."""
    memory = estimate(_shape(model, config, settings, place, device))
    return memory.weights + memory.gradients + memory.optimizer + memory.buffers


def memory_limit(config: Config, place: RankInfo, device: torch.device) -> float:
    """Return the bytes that this process may use."""
    if config.run.memory_limit_gib:
        return config.run.memory_limit_gib * 2**30
    if device.type == "cuda":
        return SHARE * float(torch.cuda.mem_get_info(device)[0])
    return SHARE * cpu_memory_available() / processes_here(place.world_size)


# -- the cached answers -------------------------------------------------------------------------


def describe(
    model: PreTrainingModel,
    config: Config,
    settings: DeepSpeedSettings,
    place: RankInfo,
    device: torch.device,
) -> dict[str, Any]:
    """Return everything that the answer depends on."""
    cuda = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if cuda else cpu_memory_total()
    shape = _shape(model, config, settings, place, device)
    return {
        "machine": torch.cuda.get_device_name(device) if cuda else "cpu",
        "memory_gib": round(total / 2**30, 1),
        "limit_gib": config.run.memory_limit_gib,
        "model": {**to_dict(config.model), "vocab_size": model.vocab_size},
        "row": [config.data.sequence_length, config.data.max_predictions_per_sequence],
        "precision": shape.precision,
        "stage": shape.stage,
        "offload": shape.offload,
        "optimizer": shape.optimizer,
        "average": shape.average,
        "bucket": shape.bucket,
        "global_batch": config.schedule.batch_from or settings.train_batch_size,
        "processes": place.world_size,
        "most_tokens": GPU_TOKENS if cuda else None,
        "torch": torch.__version__,
    }
