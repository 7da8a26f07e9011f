"""The stages of ``gpu_check.py``: one process per stage, sized for the GPU's memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FULL_GIB = 72.0
"""Memory of a GPU from which a micro batch of BERT-large is 65,536 tokens."""
ACCUMULATION = 4
"""Micro batches per step of a training run, and of a step that is compared."""
RUN_SECONDS = 12.0
"""How long each training run should train."""
ROW_FLOPS = {("large", 128): 197e9, ("large", 512): 413e9, ("base", 128): 57e9}
"""Operations of one row of Wikipedia; they decide the number of steps alone."""
TINY = {
    "tests",
    "machine",
    "ceilings",
    "attention 512",
    "passes base 128",
    "step large 512",
    "optimizer",
    "run large 512",
    "run base 128",
}
"""What runs at a tiny size: each kind of stage, each length, each recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One measurement in a process of its own."""

    name: str
    limit: float
    """Seconds after which it is stopped."""
    command: list[str]
    """After the interpreter; OUT is replaced by the file or folder it writes to."""
    read: Callable[[Path], dict[str, Any]]
    """Reads what the process left, whole or not."""


def read_json(path: Path) -> dict[str, Any]:
    """Return a stage's result; empty if it wrote none, or was stopped while it wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return a run's train lines; one that is cut short is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "tokens_per_second" in line:
            lines.append(line)
    return lines


def read_run(folder: Path) -> dict[str, Any]:
    """Return what a training run measured, without its first windows, which compile."""
    lines = read_lines(folder / "metrics.jsonl")
    if len(lines) < 3:
        return {}
    start = min(1, len(lines) - 2)
    warm, before = lines[start + 1 :], lines[start]
    settings = json.loads((folder / "deepspeed.json").read_text(encoding="utf-8"))

    def total(name: str) -> float:
        return sum(line[name] for line in warm)

    seconds = total("seconds")
    return {
        "steps": lines[-1]["step"],
        "rows": settings["train_batch_size"],
        "micro_batch": settings["train_micro_batch_size_per_gpu"],
        "rows_per_second": (warm[-1]["samples"] - before["samples"]) / seconds,
        "tokens_per_second": (warm[-1]["tokens"] - before["tokens"]) / seconds,
        "tflops": sum(line["tflops"] * line["seconds"] for line in warm) / seconds,
        "stalls": total("stall_seconds") / seconds,
        "optimizer_share": total("optimizer_seconds") / seconds,
        "memory_gib": lines[-1]["memory_gib"],
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
    }


def power_of_two(value: float) -> int:
    """Return the largest power of two that is not above a value; at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)


class Plan:
    """Builds the stages for one machine.

    Args:
        machine: what the stage of that name found.
        data: a prepared folder.
        device: cuda, or cpu.
        tiny: sizes that take seconds.
    """

    def __init__(self, machine: dict[str, Any], data: str, device: str, *, tiny: bool) -> None:
        self.data, self.device, self.tiny = data, device, tiny
        self.share = min(1.0, machine.get("memory_gib", FULL_GIB) / FULL_GIB)
        self.rate = 0.4 * (machine.get("peak") or 300e12)
        self.micro = {128: power_of_two(512 * self.share), 512: power_of_two(128 * self.share)}
        if tiny:
            self.micro = {128: 4, 512: 2}

    def stages(self) -> list[Stage]:
        """Return the stages in order of worth: what a check that is cut off should have."""
        found = [
            self.own("ceilings", "ceilings", 40),
            self.tests(),
            self.run("large", 128),
            self.step("large", 128),
            self.run("large", 512),
            self.step("large", 512),
            self.passes("large", 128),
            self.run("base", 128),
            self.optimizer(),
            self.attention(128),
            self.attention(512),
            self.step("base", 128),
            self.step("base", 512),
            self.passes("base", 128),
            self.passes("large", 512),
        ]
        if not self.tiny:
            return found
        # A busy CPU is no reason to stop.
        return [replace(stage, limit=4 * stage.limit) for stage in found if stage.name in TINY]

    def own(self, name: str, kind: str, limit: float, *more: str) -> Stage:
        """Return a stage of ``gpu_stages.py``."""
        command = [
            "benchmarks/gpu_stages.py",
            kind,
            "--json",
            "OUT",
            "--data",
            self.data,
            "--device",
            self.device,
            *(["--tiny"] if self.tiny else []),
            *more,
        ]
        return Stage(name=name, limit=limit, read=read_json, command=command)

    def sizes(self, model: str, length: int) -> list[str]:
        """Return the options for a model and rows that fill the memory."""
        return [
            "--model",
            "tiny" if self.tiny else model,
            "--length",
            str(length),
            "--rows",
            str(self.micro[length]),
        ]

    def tests(self) -> Stage:
        """Return the GPU test suite; at a tiny size those of its checks that take seconds."""
        command = ["tests/gpu/run.py", "--device", self.device, "--json", "OUT"]
        if self.tiny:
            command += ["--only", "attention", "hidden", "gradients", "recorded"]
        return Stage(name="tests", limit=90, read=read_json, command=command)

    def attention(self, length: int) -> Stage:
        """Return one layer's attention by kernel."""
        return self.own(f"attention {length}", "attention", 30, *self.sizes("large", length))

    def passes(self, model: str, length: int) -> Stage:
        """Return forward and backward of the model alone."""
        backend = ["--backend", "aot_eager"] if self.tiny else []
        sizes = self.sizes(model, length)
        return self.own(f"passes {model} {length}", "passes", 50, *sizes, *backend)

    def step(self, model: str, length: int) -> Stage:
        """Return whole steps of ours and of transformers' in turn."""
        wide = 2 if model == "base" else 1
        rows = max(4, round(256 * 128 / length * self.share * wide) // 4 * 4)
        command = [
            "benchmarks/train_step.py",
            "--data",
            self.data,
            "--lengths",
            str(length),
            "--precisions",
            "bf16",
            "--times-only",
            "--torch-adam",
            "--json",
            "OUT",
        ]
        if self.tiny:
            command += ["--model", "tiny", "--rows", "4", "--steps", "2"]
        else:
            # Steps of several micro-batches, as in the training runs. Ours are those of the shipped
            # JSON; transformers' are as large as its padded rows allow.
            ours = self.micro[length]
            if ACCUMULATION * rows % ours:
                ours = rows
            accumulation = ACCUMULATION * rows // ours
            command += ["--accumulation", str(accumulation), "--peer-rows", str(rows), "--compile"]
            command += ["--model", model, "--rows", str(ours), "--steps", "6"]
        return Stage(name=f"step {model} {length}", limit=60, read=read_json, command=command)

    def optimizer(self) -> Stage:
        """Return LAMB compared with fused AdamW."""
        command = [
            "benchmarks/optimizer.py",
            "--no-deepspeed",
            "--device",
            self.device,
            "--json",
            "OUT",
            "--sizes",
            "tiny" if self.tiny else "large",
            "--repeats",
            "2" if self.tiny else "10",
        ]
        return Stage(name="optimizer", limit=40, read=read_json, command=command)

    def run(self, model: str, length: int) -> Stage:
        """Return a training run of a shipped recipe and JSON, with the batch of one GPU."""
        phase, rows = 1 if length == 128 else 2, self.micro[length]
        steps = RUN_SECONDS * self.rate / (ROW_FLOPS[model, length] * rows * ACCUMULATION)
        values: dict[str, Any] = {
            "run.dir": "OUT",
            "data.path": self.data,
            "data.verify": "size",
            "deepspeed.train_batch_size": ACCUMULATION * rows,
            "deepspeed.train_micro_batch_size_per_gpu": rows,
            "schedule.total_steps": int(min(40, max(10, steps))) // 2 * 2,
            "log.every_steps": 2,
            "log.progress": "none",
            "validation.every_steps": 0,
            "checkpoint.every_steps": 0,
        }
        if self.tiny:
            values |= {
                "schedule.total_steps": 4,
                "log.every_steps": 1,
                "model.hidden_size": 64,
                "model.num_hidden_layers": 2,
                "model.num_attention_heads": 2,
                "model.intermediate_size": 128,
            }
        command = [
            "bertds/train.py",
            "--config",
            f"bertds/recipes/{model}_phase{phase}.yaml",
            "--deepspeed_config",
            f"ds_configs/lamb_phase{phase}_h100.json",
            "--set",
            *(f"{key}={value}" for key, value in values.items()),
        ]
        return Stage(name=f"run {model} {length}", limit=80, read=read_run, command=command)
