"""Lets the processes of a run meet at a key-value store, with a time limit and names.

torch's own rendezvous waits half an hour for a process that is frozen or was never started, and
then reports how many came, but not which. Here every process first signs a list. The watch over the
peers can start with the store, long before a process group exists.
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

from bertds.display.words import listed
from bertds.distributed.rank_info import RankInfo
from bertds.errors import BertdsError

T = TypeVar("T")

_COUNT, _OUTCOME = "bertds/come", "bertds/met"
_ALL_CAME = "all"
SHOWN = 16
"""The maximum number of missing ranks in a message."""


def meet(rank_info: RankInfo, limit_seconds: float) -> dist.Store:
    """Wait until every process of the run has come.

    Args:
        rank_info: of this process; MASTER_ADDR and MASTER_PORT are the meeting place.
        limit_seconds: how long to wait.

    Returns:
        The store, with a timeout of 1 hour per request.

    Raises:
        BertdsError: a process is missing; the message names the missing ranks.
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
        # In a separate thread: a stopped process accepts a connection but never responds.
        store = _within(limit_seconds, lambda: _open_store(rank_info, limit_seconds))
    except TimeoutError:
        # torch retries for a while after its limit, so a timeout alone does not show the reason.
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
    """Return whether the meeting place accepts a connection; a stopped process does too."""
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
    # torchrun keeps the store in its own process; otherwise rank 0 does.
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
    # torchrun's store outlives a restart, so it still has the keys of an earlier attempt.
    return dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _sign(store: dist.Store, rank_info: RankInfo, end: float) -> str:
    """Sign the list and wait for the others; return "all", or which ranks are missing."""
    store.set(_key(rank_info.rank), f"{socket.gethostname()} {os.getpid()}")
    if store.add(_COUNT, 1) == rank_info.world_size:
        store.set(_OUTCOME, _ALL_CAME)
    try:
        store.wait([_OUTCOME], timedelta(seconds=max(0.1, end - time.monotonic())))
    except RuntimeError:
        # The first rank to time out decides for all, so that none continues without the others.
        missing = [r for r in range(rank_info.world_size) if not store.check([_key(r)])]
        shown = listed(missing, SHOWN)
        store.compare_set(_OUTCOME, "", f"of {rank_info.world_size} ranks are missing: {shown}")
    outcome = str(store.get(_OUTCOME).decode())
    if outcome != _ALL_CAME and rank_info.rank == 0:
        time.sleep(2.0)  # the store ends with this process: give the others time to read
    return outcome


def _key(rank: int) -> str:
    return f"bertds/here/{rank}"
