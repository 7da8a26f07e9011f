"""What a GPU must hold: the memory model against a measurement, and the JSONs that rest on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertds.config.load import load_config
from bertds.cost_model.flops import parameter_count
from bertds.cost_model.hardware import find
from bertds.cost_model.memory import GPU_BASE, Shape, activations, estimate
from bertds.engine.ds_config import load_deepspeed_json

WORDS = 30_522


def shape_of(repository: Path, recipe: str, rows: int, tokens_per_row: float, **more) -> Shape:
    config = load_config(repository / f"bertds/recipes/{recipe}.yaml")
    return Shape(
        model=config.model,
        vocab_size=WORDS,
        sequence_length=config.data.sequence_length,
        tokens_per_row=tokens_per_row,
        micro_batch=rows,
        precision="bf16",
        stage=1,
        world_size=1,
        optimizer="Lamb",
        on_cpu=False,
        **{"masked_per_row": config.data.max_predictions_per_sequence, **more},
    )


@pytest.mark.parametrize(
    ("recipe", "rows", "tokens", "gib"),
    [
        ("large_phase1", 256, 26_845, 22.9),
        ("large_phase2", 64, 13_797, 12.2),
        ("base_phase1", 512, 54_088, 17.5),
    ],
)
def test_activations_agree_with_an_h100(repository, recipe, rows, tokens, gib) -> None:
    """Peak of forward and backward of the model alone, measured on one H100, real rows."""
    shape = shape_of(repository, recipe, rows, tokens / rows, masked_per_row=0.15 * tokens / rows)
    weights_and_gradients = 2 * 2 * parameter_count(shape.model, WORDS)
    assert (activations(shape) + weights_and_gradients) / 2**30 == pytest.approx(gib, rel=0.06)


@pytest.mark.parametrize("gpu", ["h100", "h200", "a100_80g"])
@pytest.mark.parametrize(("phase", "length"), [(1, 128), (2, 512)])
def test_a_shipped_micro_batch_of_full_rows_fits_one_gpu(repository, gpu, phase, length) -> None:
    settings = load_deepspeed_json(repository / f"ds_configs/lamb_phase{phase}_{gpu}.json")
    rows = settings.train_micro_batch_size_per_gpu
    assert rows * length == 65_536  # large enough that the host is not the limit
    shape = shape_of(repository, f"large_phase{phase}", rows, length)
    free = 0.85 * find(gpu.removesuffix("_80g")).memory_gib * 2**30
    assert estimate(shape, GPU_BASE).total < free
    for processes in (1, 8, 64, 128, 512):  # one JSON serves one GPU and hundreds
        assert settings.batch_plan(processes).global_batch_size == settings.train_batch_size
