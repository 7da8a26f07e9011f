"""Prepares DeepSpeed's import and creates the process group.

On a machine without a GPU, DeepSpeed 0.19.8 would print messages while it looks for an accelerator,
and each ``init_distributed`` would compile an operator that only inference uses, so that training
would need a compiler. Both are avoided here. Its INFO lines, which it writes to standard output,
are suppressed unless the JSON asks for them (``"log_level"``).
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
from bertds.system.start_up import paused_collector

MEETING_SECONDS = 600.0
"""How long processes wait for each other by default, in seconds."""
COLLECTIVE_SECONDS = 1800.0
"""How long a collective operation waits for a silent peer, which is usually found dead earlier."""


def import_deepspeed(log_level: str | None = None) -> ModuleType:
    """Import DeepSpeed without its messages, and with the right accelerator."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # The model exists already: `loading` would keep it, and its engine, after the run.
    with warnings.catch_warnings(), paused_collector():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

        # torch's first optimizer would import it; here its import time is shown to the user.
        import_module("torch._dynamo")
    # torch 2.13 deprecates two collectives that every ZeRO run uses.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.*")
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*all_gather_into_tensor.*")
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*reduce_scatter_tensor.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="deepspeed.*")
    # DeepSpeed's logger has handlers with levels of their own.
    level = getattr(logging, (log_level or "error").upper())
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(level)
    for handler in logger.handlers:
        handler.setLevel(level)
    # This module prints memory figures unconditionally during its set-up.
    from deepspeed.runtime import bf16_optimizer

    bf16_optimizer.see_memory_usage = lambda *arguments, **options: None
    if _is_cpu():
        # An empty table of operators: nothing is compiled for the CPU's communication backend.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _is_cpu() -> bool:
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().device_name() == "cpu"


_store: dist.Store | None = None  # the key-value store of the current run


def meet_processes(limit_seconds: float = MEETING_SECONDS) -> dist.Store:
    """Let the processes of the run find each other, before anything heavy is imported or opened.

    Args:
        limit_seconds: how long to wait for missing processes.

    Returns:
        The key-value store that they share.

    Raises:
        BertdsError: a process is missing; the message names the missing ranks.
    """
    global _store
    if _store is None:
        _store = meet(find_rank_info(), limit_seconds)
    return _store


def main_first(rank_info: RankInfo, work: Callable[[], None], limit_seconds: float) -> None:
    """Let rank 0 fetch checkpoints before the others continue. All processes must have met before.

    Args:
        rank_info: of this process.
        work: done by rank 0 alone.
        limit_seconds: how long the others wait.

    Raises:
        BertdsError: rank 0 did not finish in time.
        Exception: on rank 0, what ``work`` raised.
    """
    key = "bertds/main_first/fetch checkpoints"
    if rank_info.is_main:
        work()
        if rank_info.world_size > 1:
            meet_processes().set(key, "done")
        return
    try:
        meet_processes().wait([key], timedelta(seconds=limit_seconds))
    except dist.DistStoreError as error:  # a timeout; a lost rank 0 raises another error
        raise BertdsError(
            f"rank 0 did not finish within {limit_seconds:.0f} s: fetch checkpoints"
        ) from error


def start_processes(log_level: str | None = None) -> tuple[RankInfo, torch.device]:
    """Create the process group of the run, with one process too. Does nothing the second time.

    Args:
        log_level: of DeepSpeed's own messages; None = errors only.

    Returns:
        This process's rank information and its device.

    Raises:
        BertdsError: a process is missing.
    """
    deepspeed = import_deepspeed(log_level)
    rank_info = find_rank_info()
    # Chosen before the group exists: NCCL binds to the current device.
    if _is_cpu():
        device = torch.device("cpu")
    else:
        device = torch.device("cuda", rank_info.local_rank)
        torch.cuda.set_device(device)
        use_expandable_segments()
    if not dist.is_initialized():
        timeout = timedelta(seconds=COLLECTIVE_SECONDS)
        backend = "gloo" if device.type == "cpu" else "nccl"
        if rank_info.world_size == 1:
            # No TCP port is opened: a second run on this machine, started with the same default
            # port of the launcher, would otherwise fail because the port is in use.
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
        # DeepSpeed adopts the group that torch has initialized.
        deepspeed.init_distributed(
            dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout
        )
    return rank_info, device


def use_expandable_segments() -> None:
    """Let CUDA's caching allocator resize its segments, unless the environment configures it.

    The number of tokens differs from micro batch to micro batch, and with it the size of nearly
    every tensor. By default, a tensor larger than any cached block needs a call of cudaMalloc,
    which takes the host about 1 ms. The first steps of a run would make hundreds of them.
    """
    if any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        return
    with warnings.catch_warnings():  # newer versions of torch have renamed this function
        warnings.simplefilter("ignore", FutureWarning)
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def check_precision(precision: str) -> None:
    """Refuse a precision that the device does not support.

    Raises:
        ConfigError: fp16 or bf16 is enabled and the device does not support it.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    name = accelerator.device_name()
    if precision == "fp16" and not accelerator.is_fp16_supported():
        raise ConfigError(f"fp16.enabled=true: {name} does not support training in fp16; use bf16")
    if precision == "bf16" and not accelerator.is_bf16_supported():
        raise ConfigError(f"bf16.enabled=true: {name} does not support bf16; use fp16")


class _Destroyable(Protocol):
    """The only method of DeepSpeed's engine that is used here."""

    def destroy(self) -> None: ...


def end_processes(engine: _Destroyable | None = None, *, wait: bool = True) -> None:
    """Leave the process group: barrier, engine, process group, in this order.

    Without the barrier a ZeRO-3 process occasionally aborts while it exits.

    Args:
        engine: the DeepSpeed engine, if there is one.
        wait: False omits the barrier, because other ranks may be gone.
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
