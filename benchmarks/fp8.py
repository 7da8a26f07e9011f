"""Does training in FP8 go as training in bf16? The same rows, weights and dropout, two losses.

```text
python benchmarks/fp8.py [--data PREPARED_FOLDER] [--model tiny] [--steps 300] [--rows 32]
    [--json FILE] [--picture FILE.png]
```

Both runs start from the same weights and see the same batches with the same seeds of dropout; a
third, in bf16 with other seeds of dropout, says how far apart two runs are that differ in nothing
but luck. All are scored on the same held-out rows at the end, in bf16. On a CPU the products are
imitated, so that speed says nothing there; on a GPU seconds per step stand in the table too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.common import add_result_options, draw, facts, write_result
from benchmarks.train_step import MODELS, PREDICTIONS, Case, _wait, open_rows
from bertds.data.loader import BatchLoader
from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values
from bertds.model.bert import BertForPreTraining
from bertds.model.fp8 import use_fp8

SEED, HELD_OUT = 1, 8
RUNS = {"bf16": SEED, "fp8": SEED, "bf16, other dropout": SEED + 1}


def train(name: str, case: Case, lr: float, *, every: int) -> dict[str, Any]:
    """Return the losses of one run, its held-out loss and its seconds per step."""
    settings = check_deepspeed_values(
        {**case.deepspeed_json(), "optimizer": {"type": "AdamW", "params": {"lr": lr}}}
    )
    plan = settings.batch_plan(1)
    source, config = open_rows(case.data, case.length, PREDICTIONS[case.length])
    torch.manual_seed(SEED)
    model = BertForPreTraining(case.architecture(0.1), source.tokenizer.vocab_size)
    if name == "fp8":
        use_fp8(model.bert.encoder)
    engine = Engine.create(model, settings, plan, seed=SEED)
    losses, seconds = [], []
    with BatchLoader(source, config, plan, 0, seed=SEED) as loader:
        held_out = [next(loader).micro_batches[0] for _ in range(HELD_OUT)]
        window = torch.zeros((), device=engine.device)
        for step in range(case.steps):
            [micro] = next(loader).micro_batches
            batch = micro.to(engine.device)
            _wait(engine.device)
            began = time.perf_counter()
            engine.set_learning_rate(lr * min(1.0, (step + 1) / (0.1 * case.steps)))
            engine.seed_dropout(RUNS[name], step, 0)
            output = engine.forward_backward(
                batch, mlm_scale=1.0 / micro.masked, nsp_scale=1.0 / micro.rows
            )
            engine.step()
            _wait(engine.device)
            seconds.append(time.perf_counter() - began)
            window += output.mlm_loss_sum / micro.masked / every
            if (step + 1) % every == 0:
                losses.append(round(float(window), 5))
                window.zero_()
    scores = [engine.eval_forward(micro.to(engine.device)).mlm_loss_sum for micro in held_out]
    held_out_loss = float(sum(scores)) / sum(micro.masked for micro in held_out)
    skipped = engine.skipped_steps
    engine.close()
    return {
        "mlm_loss": losses,
        "held_out_mlm_loss": round(held_out_loss, 5),
        "skipped_steps": skipped,
        "median_seconds": round(statistics.median(seconds[1:] or seconds), 4),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    runs, every = result["runs"], result["every_steps"]
    print(
        f"{result['machine']}: BERT-{result['model']}, {result['rows']} rows of "
        f"{result['length']} tokens a step; masked-LM loss, mean of {every} steps"
    )
    print(f"{'up to step':>18}" + "".join(f"{name:>21}" for name in runs))
    for index in range(len(runs["bf16"]["mlm_loss"])):
        values = (run["mlm_loss"][index] for run in runs.values())
        print(f"{(index + 1) * every:18}" + "".join(f"{value:21.4f}" for value in values))
    for key, text in (
        ("held_out_mlm_loss", "held out"),
        ("skipped_steps", "steps skipped"),
        ("median_seconds", "seconds a step"),
    ):
        print(f"{text:>18}" + "".join(f"{run[key]:21.4g}" for run in runs.values()))


def paint(result: dict[str, Any]) -> Any:
    """Return a function that draws the losses."""

    def fill(figure: Any) -> None:
        axes, every = figure.subplots(), result["every_steps"]
        for (name, run), style in zip(result["runs"].items(), ("-", "-", ":"), strict=True):
            steps = [(index + 1) * every for index in range(len(run["mlm_loss"]))]
            axes.plot(steps, run["mlm_loss"], style, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("masked-LM loss")
        axes.set_title(f"BERT-{result['model']}, {result['machine']}")
        axes.legend()

    return fill


def main(argv: list[str] | None = None) -> int:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="a prepared folder; default: made-up text")
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--length", type=int, choices=PREDICTIONS, default=128)
    parser.add_argument("--rows", type=int, default=32, help="rows of a step, one micro-batch")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak, after a tenth of the steps")
    add_result_options(parser)
    args = parser.parse_args(argv)
    case = Case(
        model=args.model, length=args.length, precision="bf16", rows=args.rows, steps=args.steps,
        data=args.data,
    )  # fmt: skip
    every = max(1, args.steps // 10)
    result = facts("fp8.py", argv, args.note)
    result.update(model=args.model, length=args.length, rows=args.rows, every_steps=every)
    result["runs"] = {name: train(name, case, args.lr, every=every) for name in RUNS}
    show(result)
    write_result(result, args.json)
    draw(args.picture, paint(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
