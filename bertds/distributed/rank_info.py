"""Which of the processes this one is."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from bertds.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among those of the run."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes and speaks."""
        return self.rank == 0


def find_place(environment: Mapping[str, str] | None = None) -> Place:
    """Read this process's place from the launcher's variables and complete them.

    RANK, WORLD_SIZE and LOCAL_RANK come from ``deepspeed`` or ``torchrun``; under a bare ``srun``
    from SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID. With none of them the process is alone and
    MASTER_ADDR / MASTER_PORT are set to a free port of this machine.

    Raises:
        ConfigError: the variables contradict each other, as when several Slurm tasks each think
            that they are alone, or a several-node job meets at localhost.
    """
    values = dict(os.environ if environment is None else environment)
    slurm_tasks = int(values.get("SLURM_NTASKS", "1") or 1) if "SLURM_PROCID" in values else 1
    if "RANK" not in values and slurm_tasks > 1:
        values["RANK"] = values["SLURM_PROCID"]
        values["WORLD_SIZE"] = str(slurm_tasks)
        values["LOCAL_RANK"] = values.get("SLURM_LOCALID", "0")
        if "MASTER_ADDR" not in values or "MASTER_PORT" not in values:
            raise ConfigError(
                f"{slurm_tasks} Slurm tasks, but MASTER_ADDR and MASTER_PORT are not set; start "
                "with slurm/phase1.sh, or set both for all tasks"
            )
    if "RANK" not in values:
        values.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
        values["MASTER_PORT"] = str(free_port())
    try:
        place = Place(
            rank=int(values["RANK"]),
            local_rank=int(values.get("LOCAL_RANK", "0")),
            world_size=int(values.get("WORLD_SIZE", "1")),
        )
    except ValueError:
        raise ConfigError(
            "RANK, LOCAL_RANK and WORLD_SIZE must be integers, found "
            + ", ".join(f"{k}={values.get(k)!r}" for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        ) from None
    if not 0 <= place.rank < place.world_size:
        raise ConfigError(f"RANK={place.rank} is not below WORLD_SIZE={place.world_size}")
    nodes = int(values.get("SLURM_STEP_NUM_NODES", values.get("SLURM_NNODES", "1")) or 1)
    if "SLURM_PROCID" in values and nodes > 1:
        # What the launcher started on this node: if that is the whole world, it is so on each.
        here = int(values.get("LOCAL_WORLD_SIZE", values.get("LOCAL_SIZE", "0")) or 0)
        if place.world_size < nodes or place.world_size == here:
            raise ConfigError(
                f"{nodes} Slurm nodes, but WORLD_SIZE={place.world_size}: each node would train "
                "alone; start the ranks with slurm/phase1.sh (srun), not with `srun deepspeed`"
            )
        if values.get("MASTER_ADDR", "") in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(
                f"{nodes} Slurm nodes cannot meet at MASTER_ADDR={values['MASTER_ADDR']}; "
                "it must be the first node's name"
            )
    if environment is None:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        os.environ.update({key: values[key] for key in names if key in values})
    return place


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
