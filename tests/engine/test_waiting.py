"""A step off the logging cadence asks the device for no value: each would make a GPU wait.

Counted on the CPU, on the very code that a GPU runs: operations that bring a value to the host
(``.item()``, ``nonzero``, ``masked_select`` ...) pass the dispatcher there too. What only a CPU
does (rows sorted by length) is counted apart, and is the reason why rows are not sorted on a GPU.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig, ModelConfig
from bertds.data.loader import BatchLoader, open_source
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values
from bertds.model import row_layout
from bertds.model.bert import BertForPreTraining
from bertds.monitor.metrics import RunningSums

PACKAGES = [
    Path(importlib.util.find_spec(name).submodule_search_locations[0])
    for name in ("bertds", "deepspeed")
]
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique2",
    "_unique2",
    "equal",
    "is_nonzero",
}


class Watch(TorchDispatchMode):
    """Counts operations whose result the host must know, by who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name in WAITING:
            # By package, not by the name of a folder: a clone may be called bertds too.
            places = [
                f"{Path(frame.filename).relative_to(package.parent)}:{frame.name}"
                for frame in traceback.extract_stack()
                for package in PACKAGES
                if Path(frame.filename).is_relative_to(package)
            ]
            self.asked[f"{name} in {places[-1] if places else '?'}"] += 1
        return function(*arguments, **(options or {}))


@pytest.fixture
def micro_batches(tiny_data):
    config = DataConfig(path=str(tiny_data), sequence_length=32, max_predictions_per_sequence=5)
    plan = BatchPlan(global_batch_size=16, micro_batch_size=4, world_size=1)
    with BatchLoader(open_source(config, 1), config, plan, 0, seed=1) as loader:
        return [next(loader).micro_batches for _ in range(2)]


def forward_backward(micro_batches, **json_values) -> tuple[Counter[str], Counter[str]]:
    settings = check_deepspeed_values(
        {
            "train_batch_size": 16,
            "train_micro_batch_size_per_gpu": 4,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
            **json_values,
        }
    )
    model = BertForPreTraining(
        ModelConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            attention_kernel="padded",
        ),
        65,  # rows unsorted, as on a GPU
    )
    engine = Engine.create(model, settings, settings.batch_plan(1), seed=1)
    sums = RunningSums()
    scale = torch.tensor(0.25, dtype=torch.float64)
    watch = Watch()
    for number, step in enumerate(micro_batches):
        for micro_step, micro_batch in enumerate(step):
            engine.seed_dropout(1, number, micro_step)
            if number:  # the first step sets things up
                watch.__enter__()
            output = engine.forward_backward(
                micro_batch.to(engine.device), mlm_scale=scale, nsp_scale=0.25
            )
            sums.add(output, micro_batch.masked, micro_batch.rows)
            if number:
                watch.__exit__(None, None, None)
        stepping = Watch()
        with stepping:
            engine.step()
    engine.close()
    return watch.asked, stepping.asked


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_forward_and_backward_never_wait(micro_batches, stage, precision) -> None:
    asked, stepping = forward_backward(
        micro_batches, zero_optimization={"stage": stage}, **precision
    )
    assert asked == Counter()
    # Once per optimizer step DeepSpeed (at stage 0 the engine) reads the gradient norm.
    assert 1 <= stepping.total() <= 4
    readers = ("deepspeed/", "_step_unsharded", "bf16_wrapper.py:clip")
    assert all(any(reader in who for reader in readers) for who in stepping)


def test_the_watch_detects_an_operation_that_waits(micro_batches) -> None:
    """Sorting rows by length, as a CPU does, is seen: so the zeros above mean something."""
    watch = Watch()
    with watch:
        row_layout.arrange(micro_batches[0][0].cu_seqlens, micro_batches[0][0].max_seqlen)
        torch.tensor(3.0).item()
    assert sum(watch.asked.values()) >= 2
    assert any("arrange" in who for who in watch.asked)
