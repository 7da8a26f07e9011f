"""One contender of ``train_step.py``: a model's training step on the rows of a case."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.parts import PartTimer
from benchmarks.peer import Peer, pad_batch
from benchmarks.step_report import OURS
from bertds.config.recipe import DataConfig, ModelConfig
from bertds.data.loader import BatchLoader, MicroBatch, StepBatch, open_source
from bertds.data.sources.base import Source
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values
from bertds.model.bert import BertForPreTraining
from bertds.model.compile_layers import compile_layers
from bertds.pretrained.hf_weights import load_transformers_state_dict

MODELS = {"tiny": (128, 2, 2), "mini": (256, 4, 4), "base": (768, 12, 12), "large": (1024, 24, 16)}
PREDICTIONS = {128: 20, 512: 80}
SEED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One line of the table."""

    model: str
    length: int
    precision: str
    rows: int
    steps: int
    data: str
    compile: bool = False
    torch_adam: bool = False
    accumulation: int = 1
    """Micro-batches of ``rows`` per step."""
    peer_rows: int = 0
    """Rows of the peer's micro-batches, which fill more memory; 0 = as many as ours."""

    def of(self, name: str) -> Case:
        """Return the case as this contender runs it: the same rows per step."""
        if name == OURS or not self.peer_rows:
            return self
        accumulation = self.accumulation * self.rows // self.peer_rows
        return replace(self, rows=self.peer_rows, accumulation=accumulation)

    def architecture(self, dropout: float) -> ModelConfig:
        """Return the model's settings."""
        width, layers, heads = MODELS[self.model]
        return ModelConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )

    def deepspeed_json(self) -> dict[str, Any]:
        """Return the DeepSpeed JSON that both run under."""
        params: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.01}
        if self.torch_adam:
            params["torch_adam"] = True
        values: dict[str, Any] = {
            "train_batch_size": self.accumulation * self.rows,
            "train_micro_batch_size_per_gpu": self.rows,
            "optimizer": {"type": "AdamW", "params": params},
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 1},
        }
        if self.precision == "bf16":
            values["bf16"] = {"enabled": True}
        return values


def open_rows(data: str, length: int, predictions: int) -> tuple[Source, DataConfig]:
    """Open a prepared folder, or make a small corpus up."""
    config = DataConfig(
        path=data, sequence_length=length, max_predictions_per_sequence=predictions, verify="size"
    )
    if data:
        return open_source(config, SEED), config
    from benchmarks.loader import synthetic_source  # sets thread counts: not before torch

    return synthetic_source(config.rows, 2_000_000), config


def read_batches(case: Case, count: int) -> tuple[list[StepBatch], int, float]:
    """Return this number of batches, the vocabulary's size, and the loader's seconds for one."""
    predictions = PREDICTIONS.get(case.length, case.length * 5 // 32)
    source, config = open_rows(case.data, case.length, predictions)
    plan = check_deepspeed_values(case.deepspeed_json()).batch_plan(1)
    with BatchLoader(source, config, plan, 0, seed=SEED) as loader:
        next(loader)
        began = time.process_time()
        batches = [next(loader) for _ in range(max(count, 16))]
        seconds = (time.process_time() - began) / len(batches)
    return batches[:count], source.tokenizer.vocab_size, seconds


class Contender:
    """One model under its own engine."""

    def __init__(self, name: str, case: Case, vocab_size: int, dropout: float) -> None:
        architecture = case.architecture(dropout)
        torch.manual_seed(SEED)
        peer = Peer(architecture, vocab_size)
        model: torch.nn.Module = peer
        if name == OURS:
            model = BertForPreTraining(architecture, vocab_size)
            load_transformers_state_dict(model, peer.model.state_dict())
            if case.compile and torch.cuda.is_available():
                from bertds.model.fused_layer import fuse_layers

                fuse_layers(model)
            elif case.compile:
                compile_layers(model, "cpu")
        self.name = name
        self.settings = check_deepspeed_values(case.deepspeed_json())
        plan = self.settings.batch_plan(1)
        self.engine = Engine.create(model, self.settings, plan, seed=SEED)
        self.module = model
        self.timer: PartTimer | None = None

    def prepare(self, batch: MicroBatch) -> Any:
        """Return the batch as this contender takes it, on the device."""
        return (batch if self.name == OURS else pad_batch(batch)).to(self.engine.device)

    def step(self, batches: list[Any], masked: int, rows: int) -> torch.Tensor:
        """Make one optimizer step from prepared micro-batches.

        Returns:
            The loss of the last one: mean per masked token plus mean per row.
        """
        ours = self.name == OURS
        scales = (len(batches) / masked, len(batches) / rows) if ours else (1.0, 0.0)
        for batch in batches:
            output = self.engine.forward_backward(batch, mlm_scale=scales[0], nsp_scale=scales[1])
        if self.timer is None:
            self.engine.step()
        else:
            with self.timer.timed("optimizer"):
                self.engine.step()
        return output.mlm_loss_sum * scales[0] + output.nsp_loss_sum * scales[1]

    def timed_step(self, batch: StepBatch) -> tuple[float, float]:
        """Return the seconds of one step by the clock, and of all threads together."""
        prepared = [self.prepare(micro) for micro in batch.micro_batches]
        _wait(self.engine.device)
        began, used = time.perf_counter(), time.process_time()
        self.step(prepared, *_counts(batch))
        _wait(self.engine.device)
        return time.perf_counter() - began, time.process_time() - used

    def breakdown(self, batch: StepBatch) -> dict[str, float]:
        """Return seconds by part of one step of its own."""
        self.timer = PartTimer(self.engine.device.type)
        prepared = [self.prepare(micro) for micro in batch.micro_batches]
        with self.timer.watching(self.module), self.timer.timed("whole step"):
            self.step(prepared, *_counts(batch))
        seconds, self.timer = dict(self.timer.seconds), None
        named = sum(value for part, value in seconds.items() if part != "whole step")
        return {**seconds, "other": max(0.0, seconds["whole step"] - named)}


def _counts(batch: StepBatch) -> tuple[int, int]:
    """Return the masked tokens and the rows of a step."""
    micros = batch.micro_batches
    return sum(m.masked_lm_ids.numel() for m in micros), sum(m.rows for m in micros)


def close(contenders: list[Contender]) -> None:
    """End engines that share one process group, which goes with the last one."""
    for contender in contenders[:-1]:
        contender.engine._engine.destroy()
    contenders[-1].engine.close()
    for contender in contenders:
        del contender.engine, contender.module
    gc.collect()  # DeepSpeed's engines are full of cycles, and hold gigabytes


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
