"""Measure what each ingredient of ``small_cpu`` contributes, by removing one at a time.

Each run is a separate `bertds train`. Its last weights are exported and scored on held-out rows,
with 15% masks in rows of 64 and of 128 tokens. The rows are the same for all runs. Runs end by
steps and not by hours, so a busy machine changes the time but not the result. Finished runs are not
repeated. The result is written after each run.

    python benchmarks/ingredients.py --data PREPARED --work FOLDER [--steps 200] [--only NAME ...]
        [--json FILE] [--picture FILE.png]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import add_result_options, draw, facts, write_result

ALL, AGAIN = "all ingredients", "all ingredients, another seed"
SHORT_THEN_LONG = "rows of 64, then of 128"
SMALLER = {
    "model.hidden_size": 128,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 192,
    "schedule.clock_hours": "null",
}
BERT = {"model.style": "bert", "model.intermediate_size": 512}
NO_MASK_RAMP = {"data.masked_lm_prob_end": "null", "data.masked_lm_prob_steps": "null"}
MASKS_15 = {**NO_MASK_RAMP, "data.masked_lm_prob": 0.15}
LINEAR = {"schedule.decay": "polynomial", "schedule.decay_ratio": "null"}
ADAMW = {"deepspeed.optimizer.type": "AdamW"}
# As many tokens per step as 32 rows of 64.
ROWS_128 = {
    "data.sequence_length": 128,
    "data.max_predictions_per_sequence": 40,
    "deepspeed.train_batch_size": 16,
    "deepspeed.train_micro_batch_size_per_gpu": 16,
}
SHORT_SHARE = 0.6
"""Of the steps, with rows of 64; what the trapezoid spends at its peak."""
NEXT_SENTENCES = {"model.next_sentence": "true", "data.pairs": "nsp"}
# The average changes nothing in training: the first two runs keep one, and both weights are scored.
RUNS: dict[str, dict[str, Any]] = {
    ALL: {"schedule.ema_decay": 0.99},
    "masks 0.15 throughout": MASKS_15,
    "linear decay, no trapezoid": LINEAR,
    "rows of 128 tokens": ROWS_128,
    SHORT_THEN_LONG: ROWS_128,
    "no z-loss": {"model.z_loss": 0.0},
    AGAIN: {"run.seed": 43, "schedule.ema_decay": 0.999},
    "masks 0.30 throughout": NO_MASK_RAMP,
    "AdamW instead of Muon": ADAMW,
    "BERT's encoder": BERT,
    "none of them": {
        **BERT,
        **MASKS_15,
        **LINEAR,
        **ADAMW,
        **ROWS_128,
        **NEXT_SENTENCES,
        "model.z_loss": 0.0,
    },
}


def main(argv: list[str] | None = None) -> int:
    """Train, score, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder prepared with --train-vocab 4096"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="NAME")
    add_result_options(parser)
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw it to FILE (PNG, SVG)"
    )
    arguments = parser.parse_args(argv)
    result = facts("ingredients.py", argv, arguments.note)
    result |= {"steps": arguments.steps, "tokens_per_step": 2048, "runs": {}}
    for number, (name, values) in enumerate(RUNS.items()):
        if name not in arguments.only:
            continue
        folder = (arguments.work / f"run_{number}").resolve()
        data, steps = arguments.data.resolve(), arguments.steps
        if name == SHORT_THEN_LONG:
            short = folder.with_name(f"{folder.name}_short")
            before, values = two_phases(short, steps, values)
            train(short, data, steps, before)
        train(folder, data, steps, values)
        values = {key: value for key, value in values.items() if key != "init.from"}  # a path
        result["runs"][name] = {"settings": values, **score(folder, data)}
        write_result(result, arguments.json)
    show(result)
    draw(arguments.picture, paint(result))
    return 0


def settings_of(folder: Path, data: Path, steps: int, values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run; ``values`` win."""
    return {
        "run.dir": folder,
        "data.path": data,
        **SMALLER,
        "schedule.total_steps": steps,
        "data.masked_lm_prob_end": 0.15,
        "data.masked_lm_prob_steps": steps,
        "checkpoint.every_steps": steps,
        "validation.every_steps": steps,
        "validation.max_samples": 100,
        "log.progress": "none",
        **values,
    }


def two_phases(
    first: Path, steps: int, values: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is changed in each of two runs that together are one of ``steps`` steps.

    The learning rate and the mask rate of each step are those of the one run.

    Args:
        first: the folder of the first run.
        steps: of both.
        values: what is changed in the second run.
    """
    short = round(SHORT_SHARE * steps)
    rest = steps - short
    reached = 0.30 - 0.15 * short / steps
    return {"schedule.total_steps": short, "schedule.horizon_steps": steps}, {
        "init.from": first,
        "init.optimizer_state": "all",
        "schedule.total_steps": rest,
        "schedule.first_step": short,
        "schedule.horizon_steps": steps,
        "data.masked_lm_prob": round(reached, 6),
        "data.masked_lm_prob_steps": rest,
        **values,
    }


def train(folder: Path, data: Path, steps: int, values: dict[str, Any]) -> None:
    """Train a run to its end, unless it is there."""
    settings = settings_of(folder, data, steps, values)
    command = [sys.executable, "-m", "bertds", "train", "--config", "small_cpu", "--set"]
    command += [f"{key}={value}" for key, value in settings.items()]
    if not (folder / "DONE").exists():
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        subprocess.run(command, check=True, env=environment)


def score(folder: Path, data: Path) -> dict[str, float]:
    """Return the held-out losses of a run's end, in nats."""
    from bertds.api.evaluation import evaluate
    from bertds.pretrained.export import export

    lines: dict[str, float] = {}
    averaged = (folder / "config.yaml").read_text().count("ema_decay: 0.9") > 0
    for prefix, average in (("", False), *((("average_", True),) if averaged else ())):
        model = folder / f"{prefix}model"  # an export: it names no mask rate of its own
        if not model.exists():
            export(folder, model, average=average)
        for length, most in ((64, 10), (128, 20)):
            found = evaluate(model, data, sequence_length=length, max_predictions=most)
            lines[f"{prefix}loss_{length}"] = round(found["mlm_loss"], 4)
            lines[f"masked_{length}"] = found["masked"]
            lines[f"unigram_entropy_{length}"] = round(found["unigram_entropy"], 4)
    return lines


def show(result: dict[str, Any]) -> None:
    """Print a line per run and per average."""
    print(f"\n{'':36}{'rows of 64':>12}{'worse by':>10}{'rows of 128':>13}{'worse by':>10}")
    for name, losses in lines_of(result).items():
        print(f"{name:36}" + "".join(f"{loss:>12.3f}{worse:>+11.3f}" for loss, worse in losses))


def lines_of(result: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return loss and distance to the run with all ingredients, by what was changed."""
    runs, found = result["runs"], {}
    for name, run in runs.items():
        for prefix, title in (
            ("", name),
            ("average_", f"average of the weights{name.removeprefix(ALL)}"),
        ):
            if f"{prefix}loss_64" in run:
                base = runs[name if prefix else ALL] if ALL in runs else run
                pairs = [(run[f"{prefix}loss_{n}"], base[f"loss_{n}"]) for n in (64, 128)]
                found[title] = [(loss, loss - other) for loss, other in pairs]
    return found


def paint(result: dict[str, Any]) -> Any:
    """Return a function that draws a bar per ingredient and the difference between two seeds."""

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        lines = lines_of(result)
        noise = abs(lines[AGAIN][0][1]) if AGAIN in lines else 0.0
        bars = {name: losses[0][1] for name, losses in lines.items() if name not in (ALL, AGAIN)}
        axes.barh(list(bars), list(bars.values()), color="#3b6fb6")
        axes.axvspan(-noise, noise, color="0.85", zorder=0, label="difference of two seeds")
        axes.axvline(0.0, color="0.3", linewidth=0.8)
        axes.invert_yaxis()
        for place, worse in enumerate(bars.values()):
            axes.annotate(
                f"{worse:+.3f}",
                (max(worse, 0.0), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.margins(x=0.12)
        axes.set_xlabel("held-out loss against all ingredients, nats (more is worse)")
        axes.set_title(f"small_cpu at width 128, {result['steps']} steps of 2,048 tokens")
        axes.legend(fontsize=8, loc="upper right")

    return fill


if __name__ == "__main__":
    raise SystemExit(main())
