"""Starts the processes and wraps a model in DeepSpeed, with the optimizer of the JSON.

From here on the weights are where the ZeRO stage keeps them; the layout says where.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from bertds.config.batch_plan import BatchPlan
from bertds.distributed.rank_info import RankInfo
from bertds.engine.bf16_wrapper import work_on_all_tensors
from bertds.engine.build_optimizer import build_optimizer
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.engine.process_group import check_precision, import_deepspeed, start_processes
from bertds.engine.wrapper_config import wrapper_config
from bertds.engine.zero_layout import DeepSpeedObject, Layout, read_layout
from bertds.errors import BertdsError
from bertds.optim.lamb import ShardedLamb
from bertds.optim.moments import create_moments
from bertds.optim.muon import ShardedMuon
from bertds.system.fault_points import reached


@dataclass(frozen=True, kw_only=True, slots=True)
class Wrapped:
    """A model that DeepSpeed has wrapped, and what belongs to it on this rank."""

    engine: DeepSpeedObject
    """DeepSpeed's engine."""
    optimizer: torch.optim.Optimizer
    """Our optimizer, which the engine wraps; it has zero moments."""
    layout: Layout
    """Where the master weights are."""
    place: RankInfo
    device: torch.device
    exact: dict[str, torch.Tensor] | None
    """In bf16 and fp16 the float32 weights by name, on the CPU; the masters are rounded."""


def wrap(
    model: torch.nn.Module,
    settings: DeepSpeedSettings,
    batch_plan: BatchPlan,
    seed: int,
) -> Wrapped:
    """Start the process group, wrap the model and build its optimizer. Collective.

    The arguments and errors are those of :meth:`bertds.engine.deepspeed_engine.Engine.create`.
    """
    deepspeed = import_deepspeed(settings.values.get("log_level"))
    check_precision(settings.precision)
    place, device = start_processes(settings.values.get("log_level"))
    if place.world_size != batch_plan.world_size:
        raise BertdsError(
            f"the batch plan is for {batch_plan.world_size} processes, but the world size is "
            f"{place.world_size}"
        )
    torch.manual_seed(seed)
    model.to(device)
    # Every rank starts with the weights of rank 0.
    with torch.no_grad():
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0)
    # DeepSpeed casts the model before it copies the masters, so keep the exact weights.
    exact = None
    if settings.precision in ("bf16", "fp16"):
        exact = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
    reached("engine.wrap")
    optimizer = build_optimizer(model, settings, device)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=wrapper_config(settings, batch_plan, optimizer),
    )
    # Moments exist before the first step, so that a checkpoint always has them.
    layout = read_layout(engine, optimizer)
    work_on_all_tensors(engine)
    for partition in layout.partitions:
        create_moments(optimizer, partition.tensor)
    if isinstance(optimizer, ShardedLamb | ShardedMuon):
        optimizer.bind(layout.partitions, list(layout.numels), device)
    return Wrapped(
        engine=engine,
        optimizer=optimizer,
        layout=layout,
        place=place,
        device=device,
        exact=exact,
    )
