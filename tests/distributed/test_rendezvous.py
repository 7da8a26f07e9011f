from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from bertds.distributed.rank_info import RankInfo
from bertds.distributed.rendezvous import meet
from bertds.errors import BertdsError


def test_a_restarted_attempt_ignores_ranks_of_the_previous_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun keeps its store over a restart of the ranks, and what they wrote in it."""
    agent = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(agent.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    places = [RankInfo(rank, rank, 2) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(lambda place: meet(place, 20.0), places))) == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(BertdsError, match="of 2 ranks are missing: 1"):
        meet(places[0], 0.2)
