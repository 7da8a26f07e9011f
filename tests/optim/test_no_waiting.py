"""On a GPU a step of LAMB never waits for the device: shown with tensors that have no values.

What makes the host wait is a value read (``item``, a Python ``if``, an index by a mask) or a copy
to the host. On the meta device, which has shapes but no values, each of them is an error.
"""

from __future__ import annotations

import pytest
import torch

from bertds.optim.lamb import ShardedLamb
from bertds.optim.lamb_foreach import ForeachLamb
from bertds.optim.partition import Partition, Slice
from bertds.optim.weight_decay import is_decayed

NAMES = ["emb.weight", "LayerNorm.weight", "dense.bias"]


def make(variant: str) -> tuple[ShardedLamb, torch.nn.Parameter]:
    parameter = torch.nn.Parameter(torch.empty(100, device="meta"))
    slices = [Slice(NAMES[0], 0, 0, 60), Slice(NAMES[1], 0, 60, 20), Slice(NAMES[2], 4, 80, 16)]
    lamb = ShardedLamb([parameter], lr=0.1, variant=variant, is_decayed=is_decayed)
    lamb.bind([Partition(tensor=parameter, slices=slices)], NAMES)
    parameter.grad = torch.empty(100, device="meta")
    return lamb, parameter


@pytest.mark.parametrize("variant", ["nvidia", "deepspeed", "paper"])
def test_a_step_reads_no_value_and_copies_nothing_to_the_host(variant: str) -> None:
    lamb, parameter = make(variant)
    assert isinstance(lamb._works[id(parameter)], ForeachLamb)  # as on a GPU
    for number in (1, 2):
        lamb.step()
        assert lamb.state[parameter]["step"] == number


def test_reading_a_value_would_be_noticed() -> None:
    lamb, _ = make("nvidia")
    lamb.step()
    with pytest.raises(RuntimeError):
        lamb._ratios[0].item()
    with pytest.raises(NotImplementedError):
        lamb.trust_ratio_summary()  # what the log reads, at its own cadence
    with pytest.raises((RuntimeError, NotImplementedError)):
        lamb._ratios[lamb._adapted]
