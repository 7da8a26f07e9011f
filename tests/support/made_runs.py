"""Run folders as training writes them, made by hand: quick, and of any length."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

RECIPE = """
run: {dir: "%s"}
model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
data: {path: "%s", sequence_length: %d}
schedule: {total_steps: %d}
init: {from: "%s"}
"""


def train_line(step: int, **changes: Any) -> dict[str, Any]:
    """One train line."""
    values = {
        "step": step,
        "loss": 7.0,
        "mlm_loss": 3.0 + 4 * math.exp(-step / 1000),
        "nsp_loss": 0.6,
        "mlm_accuracy": 0.1 + step / 1e4,
        "nsp_accuracy": 0.7,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "samples": 32 * step,
        "tokens": 3600 * step,
        "tokens_per_second": 5000.0,
        "seconds": 7.2,
        "stall_seconds": 0.01,
        "optimizer_seconds": 0.4,
        "skipped_steps": 0,
        "restarts": 0,
        "memory_gib": 0.7,
        "tflops": 0.02,
    }
    return {**values, **changes}


def make_run(
    path: Path,
    lines: list[dict[str, Any]],
    *,
    total: int = 1000,
    length: int = 128,
    data: Path | str = "",
    origin: Path | str = "",
    done: bool = True,
) -> Path:
    """Write a run folder."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(RECIPE % (path, data, length, total, origin))
    (path / "deepspeed.json").write_text(
        '{"train_batch_size": 32, "train_micro_batch_size_per_gpu": 8, '
        '"optimizer": {"type": "AdamW", "params": {"lr": 0.001}}}'
    )
    (path / "environment.json").write_text(
        json.dumps(
            {
                "bertds": "0.1.0",
                "commit": "abc1234",
                "python": "3.11.7",
                "packages": {"torch": "2.13.0"},
                "starts": [{"time": "", "command": f"bertds train --set a=<{path.name}>"}],
            }
        )
    )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        (path / "DONE").write_text("{}")
    return path


def add_vocabulary(run: Path, size: int) -> None:
    """Give a run folder a tokenizer of this number of tokens."""
    (run / "tokenizer").mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(size - 5))]
    (run / "tokenizer" / "vocab.txt").write_text("\n".join(tokens) + "\n")
