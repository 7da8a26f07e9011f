"""Finds the rank of this process in the variables of its launcher."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bertds.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RankInfo:
    """The rank of this process, on its machine and in the run."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0


class _Starter(NamedTuple):
    """The variables in which a launcher passes each process its rank."""

    name: str
    rank: str
    size: str
    local_rank: str


# In this order: mpirun inside a Slurm allocation passes on the variables of its shell, where every
# process has the same SLURM_PROCID.
_STARTERS = (
    _Starter(
        "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"
    ),
    _Starter("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    _Starter("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK"),
    _Starter("MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
    _Starter("MPI", "PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK"),  # Cray
    _Starter("Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID"),
    _Starter("Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)

LAUNCHER_PID = "BERTDS_LAUNCHER"
"""Set by ``bertds train --processes`` to its process id."""
# Set by deepspeed and torchrun.
_LAUNCHERS = (LAUNCHER_PID, "CROSS_RANK", "TORCHELASTIC_RUN_ID")


def has_launcher(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether the parent of this process is a launcher, whose death should end the run.

    A child of a shell continues when the shell ends: ``nohup``, ``disown``, tmux and cron rely on
    this.
    """
    values = os.environ if environment is None else environment
    if any(name in values for name in _LAUNCHERS):
        return True
    return any(_count(values, starter.size) > 1 for starter in _STARTERS)


def starter_of(environment: Mapping[str, str]) -> str:
    """Return the name of the launcher that started several processes, or "" if none did."""
    if _count(environment, "WORLD_SIZE") > 1 and "RANK" in environment:
        return "a launcher"
    # Slurm's variables are also those of the shell in an allocation.
    several = [s.name for s in _STARTERS if s.name != "Slurm" and _count(environment, s.size) > 1]
    return several[0] if several else ""


def _count(values: Mapping[str, str], name: str) -> int:
    """Return a variable as a count; 0 if it is absent or not a whole number."""
    text = values.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _read_starter(values: dict[str, str]) -> None:
    """Set RANK, WORLD_SIZE and LOCAL_RANK from an MPI's or Slurm's variables, if there are any.

    Raises:
        ConfigError: the variables are incomplete, or RANK and WORLD_SIZE contradict them.
    """
    meeting = "MASTER_ADDR and MASTER_PORT are not set"
    # Use the first launcher that started more than one process.
    for starter in _STARTERS:
        size = _count(values, starter.size)
        if starter.rank not in values or size < 2:
            continue
        if "RANK" in values:
            if _count(values, "WORLD_SIZE") < size and starter.name != "Slurm":
                raise ConfigError(
                    f"{starter.name} started {size} processes, but "
                    f"WORLD_SIZE={values.get('WORLD_SIZE', '')}, so each would train separately; "
                    "start with mpirun or with deepspeed, not one inside the other"
                )
            return
        if starter.local_rank not in values and starter.name == "MPI":
            continue  # the next entry may have another name for it
        values["RANK"], values["WORLD_SIZE"] = values[starter.rank], str(size)
        values["LOCAL_RANK"] = values.get(starter.local_rank, "0")
        if "MASTER_ADDR" not in values or "MASTER_PORT" not in values:
            if starter.name == "Slurm":
                remedy = "start with slurm/phase1.sh, or set both for all tasks"
                raise ConfigError(f"{size} Slurm tasks, but {meeting}; {remedy}")
            raise ConfigError(
                f"{starter.name} started {size} processes, but {meeting}; set both for all "
                "processes, to the name of the first machine and a free port on it"
            )
        return
    # No known launcher. A RANK from torchrun or the user is complete; other MPIs are refused below.
    if "RANK" in values:
        return
    several = _count(values, "PMI_SIZE") > 1
    unknown = "PMIX_RANK" in values and not any(s.size in values for s in _STARTERS)
    if several or unknown:
        found = "PMI_RANK" if several else "PMIX_RANK"
        lacks = (
            "the number of this process on its machine" if several else "the number of processes"
        )
        raise ConfigError(
            f"{found}={values.get(found, '')} is set, but {lacks} is unknown; set RANK, "
            "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each process"
        )


def find_rank_info(environment: Mapping[str, str] | None = None) -> RankInfo:
    """Read this process's rank from the launcher's variables, and complete them.

    RANK, WORLD_SIZE and LOCAL_RANK come from ``bertds train --processes``, ``deepspeed`` or
    ``torchrun``. Under ``mpirun`` or a bare ``srun``, their own variables are read. With none of
    them the process is alone, and MASTER_ADDR and MASTER_PORT are set to a free port here.

    Raises:
        ConfigError: the variables are incomplete or contradict each other: for example, several
            processes each seem to be alone, or a job on several nodes uses localhost.
    """
    values = dict(os.environ if environment is None else environment)
    _read_starter(values)
    if "RANK" not in values:
        values.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        values["MASTER_PORT"] = str(free_port())
    try:
        rank_info = RankInfo(
            rank=int(values["RANK"]),
            local_rank=int(values.get("LOCAL_RANK", "0")),
            world_size=int(values.get("WORLD_SIZE", "1")),
        )
    except ValueError:
        raise ConfigError(
            "RANK, LOCAL_RANK and WORLD_SIZE must be integers, found "
            + ", ".join(f"{k}={values.get(k)!r}" for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        ) from None
    # A rank outside the world would wait for processes that do not exist.
    if not 0 <= rank_info.rank < rank_info.world_size:
        raise ConfigError(
            f"RANK={rank_info.rank} must be less than WORLD_SIZE={rank_info.world_size}"
        )
    nodes = _count(values, "SLURM_STEP_NUM_NODES") or _count(values, "SLURM_NNODES") or 1
    if "SLURM_PROCID" in values and nodes > 1:
        # Processes that the launcher started on this node: if they are the whole world, each node
        # trains separately.
        here = _count(values, "LOCAL_WORLD_SIZE") or _count(values, "LOCAL_SIZE")
        if rank_info.world_size < nodes or rank_info.world_size == here:
            raise ConfigError(
                f"{nodes} Slurm nodes, but WORLD_SIZE={rank_info.world_size}, so each node would "
                "train separately; start the ranks with slurm/phase1.sh (srun), not with `srun "
                "deepspeed`"
            )
        if values.get("MASTER_ADDR", "") in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(
                f"{nodes} Slurm nodes cannot meet at MASTER_ADDR={values['MASTER_ADDR']}; "
                "it must be the first node's name"
            )
    # torch and DeepSpeed read these variables too.
    if environment is None:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        os.environ.update({key: values[key] for key in names if key in values})
    return rank_info


def free_port() -> int:
    """Return a TCP port of this machine that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
