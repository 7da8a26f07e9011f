"""On a GPU a step of LAMB never waits for the device: shown with tensors that have no values.

What makes the host wait is a value read (``item``, a Python ``if``, an index by a mask) or a copy
to the host. On the meta device, which has shapes but no values, each of them is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

lamb_triton = pytest.importorskip("bertds.optim.lamb_triton")

from bertds.optim.lamb import ShardedLamb  # noqa: E402
from bertds.optim.partition import Partition, Slice  # noqa: E402
from bertds.optim.weight_decay import is_decayed  # noqa: E402

NAMES = ["emb.weight", "LayerNorm.weight", "dense.bias"]


def make(variant: str) -> tuple[ShardedLamb, torch.nn.Parameter]:
    parameter = torch.nn.Parameter(torch.empty(100, device="meta"))
    slices = [Slice(NAMES[0], 0, 0, 60), Slice(NAMES[1], 0, 60, 20), Slice(NAMES[2], 4, 80, 16)]
    lamb = ShardedLamb([parameter], lr=0.1, variant=variant, is_decayed=is_decayed)
    lamb.bind([Partition(tensor=parameter, slices=slices)], NAMES)
    parameter.grad = torch.empty(100, device="meta")
    return lamb, parameter


class Launches:
    """Stands for a kernel: notes what it is launched with."""

    def __init__(self, name: str, seen: list[tuple[str, tuple[int, ...]]]) -> None:
        self.name, self.seen = name, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: int) -> None:
            for argument in arguments:
                # A tensor of the device, or a number that the host has without asking it.
                assert type(argument) in (int, float) or argument.device.type == "meta"
            self.seen.append((self.name, grid))

        return launch


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    seen: list[tuple[str, tuple[int, ...]]] = []
    for name in ("update_moments", "sum_blocks", "apply_update"):
        monkeypatch.setattr(lamb_triton, name, Launches(name, seen))
    return seen


@pytest.mark.parametrize("variant", ["nvidia", "deepspeed", "paper"])
def test_a_step_reads_no_value_and_copies_nothing_to_the_host(
    variant: str, launches: list[tuple[str, tuple[int, ...]]]
) -> None:
    lamb, parameter = make(variant)
    for number in (1, 2):
        launches.clear()
        lamb.step()
        assert lamb.state[parameter]["step"] == number
        # One launch per kernel: three blocks, each of three tensors' two sums.
        assert launches == [
            ("update_moments", (3,)),
            ("sum_blocks", (3, 2)),
            ("apply_update", (3,)),
        ]


def test_reading_a_value_would_be_noticed() -> None:
    lamb, _ = make("nvidia")
    lamb.step()
    with pytest.raises(RuntimeError):
        lamb._ratios[0].item()
    with pytest.raises(NotImplementedError):
        lamb.trust_ratio_summary()  # what the log reads, at its own cadence
    with pytest.raises((RuntimeError, NotImplementedError)):
        lamb._ratios[lamb._adapted]
