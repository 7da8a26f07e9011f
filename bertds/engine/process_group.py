"""Everything that must be right before DeepSpeed is imported and its processes meet.

On a machine without a GPU, DeepSpeed 0.19.8 would look for an accelerator aloud, and each
``init_distributed`` would compile an operator that only inference uses, so that a newcomer without
a compiler could not train. Both are avoided here. Its INFO lines, which it writes to standard
output, are kept quiet unless asked for (``"log_level"`` in the JSON).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from types import ModuleType
from typing import Protocol

import torch
import torch.distributed as dist

from bertds.distributed.rank_info import RankInfo, find_rank_info
from bertds.distributed.rendezvous import meet
from bertds.errors import BertdsError, ConfigError
from bertds.system.fault_points import reached
from bertds.system.start_up import loading

MEETING_SECONDS = 600.0
"""How long processes wait for each other, unless a recipe says otherwise."""


def import_deepspeed(log_level: str | None = None) -> ModuleType:
    """Import DeepSpeed, quietly, and with the right accelerator."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings(), loading("deepspeed"):
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

        import_module("torch._dynamo")  # as torch's first optimizer would
    # torch 2.13 deprecates two collectives that every ZeRO run uses.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.*")
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*all_gather_into_tensor.*")
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*reduce_scatter_tensor.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="deepspeed.*")
    level = getattr(logging, (log_level or "error").upper())
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(level)
    for handler in logger.handlers:
        handler.setLevel(level)
    # This file prints memory figures, unconditionally, while it is set up.
    from deepspeed.runtime import bf16_optimizer

    bf16_optimizer.see_memory_usage = lambda *arguments, **options: None
    if _is_cpu():
        # An empty table of operators: nothing is compiled for the CPU's communication backend.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _is_cpu() -> bool:
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().device_name() == "cpu"


_store: dist.Store | None = None  # where the processes of the run now under way have met


def meet_processes(limit_seconds: float = MEETING_SECONDS) -> dist.Store:
    """Let the processes of the run find each other, before anything heavy is imported or opened.

    Args:
        limit_seconds: how long to wait for those that have not come.

    Returns:
        The key-value store at which they met.

    Raises:
        BertdsError: not all came; the message names the missing ones.
    """
    global _store
    if _store is None:
        _store = meet(find_rank_info(), limit_seconds)
    return _store


def main_first(
    rank_info: RankInfo, name: str, work: Callable[[], None], limit_seconds: float
) -> None:
    """Let the main process do something before the others continue; all have met by then.

    Args:
        rank_info: this process's.
        name: of the work, once per run.
        work: done by rank 0 alone.
        limit_seconds: how long the others wait.

    Raises:
        BertdsError: rank 0 did not finish in time.
        Exception: on rank 0, what ``work`` raised.
    """
    key = f"bertds/main_first/{name}"
    if rank_info.is_main:
        work()
        if rank_info.world_size > 1:
            meet_processes().set(key, "done")
        return
    try:
        meet_processes().wait([key], timedelta(seconds=limit_seconds))
    except dist.DistStoreError as error:  # the wait was too long; else rank 0 is gone
        raise BertdsError(f"rank 0 did not finish within {limit_seconds:.0f} s: {name}") from error


def start_processes(
    log_level: str | None = None, timeout_seconds: float = 1800.0
) -> tuple[RankInfo, torch.device]:
    """Make the process group of the run; alone, a world of one. Does nothing the second time.

    Args:
        log_level: of DeepSpeed's own messages; None = errors only.
        timeout_seconds: how long a collective operation waits for a silent peer.

    Returns:
        This process's place and its device.

    Raises:
        BertdsError: the processes did not find each other.
    """
    deepspeed = import_deepspeed(log_level)
    rank_info = find_rank_info()
    if _is_cpu():
        device = torch.device("cpu")
    else:
        device = torch.device("cuda", rank_info.local_rank)
        torch.cuda.set_device(device)
        use_expandable_segments()
    if not dist.is_initialized():
        timeout = timedelta(seconds=timeout_seconds)
        backend = "gloo" if device.type == "cpu" else "nccl"
        if rank_info.world_size == 1:
            # No TCP port: two such runs on one machine, both started with the launcher's usual
            # port, would else fail on a port already in use.
            store: dist.Store = dist.HashStore()
        else:
            store = dist.PrefixStore("bertds/group", meet_processes())
        reached("engine.group")
        dist.init_process_group(
            backend,
            store=store,
            rank=rank_info.rank,
            world_size=rank_info.world_size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        deepspeed.init_distributed(
            dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout
        )
    return rank_info, device


def use_expandable_segments() -> None:
    """Let CUDA's caching allocator resize its segments, unless the environment configures it.

    The number of tokens differs from micro batch to micro batch, and with it the size of nearly
    every tensor. By default, a tensor larger than any cached block is a call of cudaMalloc, which
    costs the host about a millisecond; the first steps of a run make hundreds of them.
    """
    if any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        return
    with warnings.catch_warnings():  # the function has a new name in newer torch
        warnings.simplefilter("ignore", FutureWarning)
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def check_precision(precision: str) -> None:
    """Refuse a precision that the device does not have.

    Raises:
        ConfigError: fp16 on a CPU without it, or bf16 on a GPU that is too old.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    name = accelerator.device_name()
    if precision == "fp16" and not accelerator.is_fp16_supported():
        raise ConfigError(f"fp16.enabled=true: {name} does not support training in fp16; use bf16")
    if precision == "bf16" and not accelerator.is_bf16_supported():
        raise ConfigError(f"bf16.enabled=true: {name} does not support bf16; use fp16")


class _Destroyable(Protocol):
    """The DeepSpeed engine, of which only this is used here."""

    def destroy(self) -> None: ...


def end_processes(engine: _Destroyable | None = None, *, wait: bool = True) -> None:
    """End the run's collective life: barrier, engine, process group, in this order.

    Without the barrier a ZeRO-3 process now and then aborts while it exits.

    Args:
        engine: the DeepSpeed engine, if there is one.
        wait: False leaves the barrier out, where other ranks may be gone.
    """
    global _store
    _store = None
    if wait and dist.is_initialized():
        dist.barrier()
    if engine is not None:
        engine.destroy()
    if dist.is_initialized():
        if not wait and dist.get_backend() == "nccl":
            # Destroying would wait for operations that a lost peer never finishes.
            dist.distributed_c10d._abort_process_group()
            return
        import deepspeed.comm

        deepspeed.comm.destroy_process_group()
