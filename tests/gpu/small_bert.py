"""A small BERT and ragged rows for it, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bertds.config.recipe import ModelConfig
from bertds.data.batches import MicroBatch
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values
from bertds.model.bert import BertForPreTraining

VOCABULARY = 101
CONFIG = ModelConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.1,
)
ROWS = 6
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def make_model(**changes: Any) -> BertForPreTraining:
    """The same float32 weights each time, on the CPU."""
    torch.manual_seed(0)
    return BertForPreTraining(replace(CONFIG, **changes), VOCABULARY)


def make_rows(seed: int, lengths: list[int] | None = None) -> MicroBatch:
    """Ragged rows of up to 48 tokens, or of given lengths; three masked tokens each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    lengths = lengths or draw(8, 49, ROWS).tolist()
    tokens, rows = sum(lengths), len(lengths)
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    masked = torch.cat([start + torch.tensor([1, 3, 6]) for start in starts[:-1].long()])
    return MicroBatch(
        input_ids=draw(5, VOCABULARY, tokens),
        segment_ids=draw(0, 2, tokens),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=starts,
        max_seqlen=max(lengths),
        masked_lm_positions=masked,
        masked_lm_ids=draw(5, VOCABULARY, len(masked)),
        next_sentence_labels=draw(0, 2, rows),
        rows=rows,
        sequence_length=64,
        masked=len(masked),
    )


def loss_and_gradients(
    model: BertForPreTraining, batch: MicroBatch
) -> tuple[float, dict[str, Tensor]]:
    """The sum of both losses and float32 gradients by name, on the CPU."""
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    output = model(**batch.to(device).model_inputs())
    loss = output.mlm_loss_sum + output.nsp_loss_sum
    loss.backward()
    gradients = {
        name: parameter.grad.float().cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return float(loss.detach()), gradients


def distance(found: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Norm of the difference of all tensors together, relative to their norm."""
    assert found.keys() == want.keys()
    apart = sum(float((found[name] - want[name]).double().square().sum()) for name in want)
    size = sum(float(want[name].double().square().sum()) for name in want)
    return (apart / size) ** 0.5


def make_engine(device: str, stage: int, precision: str, **more: Any) -> Engine:
    """An engine on a device: two micro batches per step, LAMB unless set otherwise."""
    values: dict[str, Any] = {
        "train_batch_size": 2 * ROWS,
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "Lamb", "params": {"lr": 0.01, "weight_decay": 0.01}},
        "zero_optimization": {"stage": stage},
    }
    if precision != "fp32":
        values[precision] = {"enabled": True}
    values[precision] = {**values.get(precision, {}), **more.pop("scaling", {})}
    if precision == "fp32":
        del values[precision]
    settings = check_deepspeed_values({**values, **more})
    engine = Engine.create(make_model(), settings, settings.batch_plan(1), seed=1)
    assert engine.device.type == device, f"DS_ACCELERATOR chose {engine.device}; make test-gpu"
    return engine


def train(engine: Engine, steps: range) -> tuple[list[float], list[bool]]:
    """Losses per masked token and row, and whether each step was applied."""
    losses, applied = [], []
    for step in steps:
        total = 0.0
        for micro_step in range(2):
            batch = make_rows(10 * step + micro_step).to(engine.device)
            engine.seed_dropout(7, step, micro_step)
            output = engine.forward_backward(
                batch, mlm_scale=1.0 / batch.masked, nsp_scale=1.0 / batch.rows
            )
            total += float(output.mlm_loss_sum) / batch.masked
            total += float(output.nsp_loss_sum) / batch.rows
        applied.append(engine.step())
        losses.append(total / 2)
    return losses, applied


def weights_of(engine: Engine) -> dict[str, Tensor]:
    """Copies of the float32 weights, on the CPU."""
    return {
        piece.name: piece.tensor.detach().cpu().clone()
        for piece in engine.pieces()
        if piece.kind == "weight"
    }


@contextmanager
def fp16_allowed() -> Iterator[None]:
    """DeepSpeed trains in fp16 on a CPU only if it is set to allow it."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        yield
        return
    names = ("is_fp16_supported", "supported_dtypes")
    accelerator.is_fp16_supported = lambda: True
    accelerator.supported_dtypes = lambda: list(DTYPES.values())
    try:
        yield
    finally:
        for name in names:
            delattr(accelerator, name)  # the class's own is there again
