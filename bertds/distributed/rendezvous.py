"""The processes of a run meet at a key-value store, within a time limit, and by name.

torch's own meeting waits half an hour for a process that was frozen, or never started, and then
says how many came, not who. Here every process signs a list first. The watch over the peers can
begin with the store, long before a process group exists.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from bertds.distributed.rank_info import RankInfo
from bertds.errors import BertdsError

T = TypeVar("T")

_COUNT, _OUTCOME = "bertds/come", "bertds/met"
_ALL_CAME = "all"
SHOWN = 16
"""A message names at most this number of missing ranks."""


def meet(rank_info: RankInfo, limit_seconds: float) -> dist.Store:
    """Wait until every process of the run has come.

    Args:
        rank_info: this process; MASTER_ADDR and MASTER_PORT say where to meet.
        limit_seconds: for how long.

    Returns:
        The store, with an hour's patience for what is asked of it.

    Raises:
        BertdsError: not all came in time; the message says who is missing.
    """
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    waited = (
        f"rank {rank_info.rank} of {rank_info.world_size} waited {limit_seconds:.0f} s at {address}"
    )
    remedy = (
        "check that they have started and are not suspended, and that this machine can reach theirs"
    )
    end = time.monotonic() + limit_seconds
    try:
        # In a thread of its own: a stopped process accepts a connection but never answers.
        store = _within(limit_seconds, lambda: _open_store(rank_info, limit_seconds))
    except TimeoutError:
        # torch tries again for a while past its limit, so silence alone says little.
        what = "does not respond" if rank_info.rank == 0 or _somebody_listens() else "is missing"
        raise BertdsError(f"{waited}: rank 0 {what}; {remedy}") from None
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if rank_info.rank and "timed out" in reason:
            raise BertdsError(f"{waited}: rank 0 is missing; {remedy}") from error
        raise BertdsError(
            f"rank {rank_info.rank} of {rank_info.world_size} did not meet the others at "
            f"{address}: {reason}"
        ) from error
    try:
        outcome = _within(limit_seconds + 10.0, lambda: _sign(store, rank_info, end))
    except (TimeoutError, RuntimeError):
        raise BertdsError(f"{waited}: rank 0 is gone or does not respond; {remedy}") from None
    if outcome != _ALL_CAME:
        raise BertdsError(f"{waited}: {outcome}; {remedy}")
    store.set_timeout(timedelta(hours=1))
    return store


def _somebody_listens() -> bool:
    """Whether a connection to the meeting place is accepted, by a stopped process too."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(place, timeout=2.0).close()
    except OSError:
        return False
    return True


def _within(seconds: float, act: Callable[[], T]) -> T:
    result: dict[str, Any] = {}

    def work() -> None:
        try:
            result["value"] = act()
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=work, name="bertds-meet", daemon=True)
    thread.start()
    thread.join(seconds + 1.0)
    if "error" in result:
        raise result["error"]
    if "value" not in result:
        raise TimeoutError
    return result["value"]


def _open_store(rank_info: RankInfo, limit_seconds: float) -> dist.Store:
    # torchrun keeps the store in its own process; else rank 0 does.
    elsewhere = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        host_name=os.environ["MASTER_ADDR"],
        port=int(os.environ["MASTER_PORT"]),
        world_size=rank_info.world_size,
        is_master=rank_info.rank == 0 and not elsewhere,
        timeout=timedelta(seconds=limit_seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )
    # That store outlives a restart by torchrun, and what an earlier attempt wrote is still there.
    return dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _sign(store: dist.Store, rank_info: RankInfo, end: float) -> str:
    """Return "all", or who is missing."""
    store.set(_key(rank_info.rank), f"{socket.gethostname()} {os.getpid()}")
    if store.add(_COUNT, 1) == rank_info.world_size:
        store.set(_OUTCOME, _ALL_CAME)
    try:
        store.wait([_OUTCOME], timedelta(seconds=max(0.1, end - time.monotonic())))
    except RuntimeError:
        # The first whose patience ends decides for all: no rank continues without the others.
        missing = [r for r in range(rank_info.world_size) if not store.check([_key(r)])]
        shown = ", ".join(map(str, missing[:SHOWN])) + (" ..." if len(missing) > SHOWN else "")
        store.compare_set(_OUTCOME, "", f"of {rank_info.world_size} ranks are missing: {shown}")
    outcome = str(store.get(_OUTCOME).decode())
    if outcome != _ALL_CAME and rank_info.rank == 0:
        time.sleep(2.0)  # the store goes with this process: let the others read
    return outcome


def _key(rank: int) -> str:
    return f"bertds/here/{rank}"
