"""``bertds finetune``: fine-tune a pre-trained model on a task and score it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertds.errors import EXIT_OK, ConfigError
from bertds.finetune.tasks import TASKS, Task, get_task
from bertds.system.arguments import CommandParser
from bertds.system.idle_options import given_options, refuse_idle, refuse_together
from bertds.system.logs import log
from bertds.system.option_types import finite

if TYPE_CHECKING:
    from bertds.finetune.task_data import DataOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds finetune",
        usage="%(prog)s --task TASK --model MODEL --data DIR_OR_HUB --out DIR [options]",
        description="Fine-tune on a task, score it with the task's published metrics, and write "
        "predictions in the official format. All combinations of --learning-rate and "
        "--seeds are run.",
    )
    add = parser.add_argument
    add("--task", required=True, help=f"glue, {', '.join(TASKS)}")
    add(
        "--model",
        required=True,
        help="a name listed by `bertds models`, a run, a folder or a Hub id",
    )
    add(
        "--data",
        default="",
        metavar="DIR_OR_HUB",
        help="the task's folder in its published layout, OWNER/NAME of a dataset on the Hub, or "
        "the word hub for the task's standard dataset there",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="output folder")
    add("--overwrite", action="store_true", help="replace an earlier result in --out")
    add("--train", default="", metavar="FILE", help="file to train on, instead of --data")
    add("--dev", default="", metavar="FILE", help="file to score")
    add("--test", default="", metavar="FILE", help="file to write predictions for")
    add(
        "--text-column", default="", metavar="NAME", help="column with the text, for your own files"
    )
    add("--pair-column", default="", metavar="NAME", help="column with the second text")
    add("--label-column", default="", metavar="NAME", help="column with the label")
    add("--regression", action="store_true", help="the labels are numbers")
    add(
        "--learning-rate",
        type=finite,
        nargs="+",
        default=None,
        metavar="LR",
        help="one or more learning rates; the one with the best dev score is kept (default: 5e-5 "
        "4e-5 3e-5 2e-5)",
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[42],
        metavar="N",
        help="one or more seeds (default: 42)",
    )
    add(
        "--epochs",
        type=finite,
        default=None,
        metavar="N",
        help="number of epochs (default: 3; SQuAD: 2)",
    )
    add(
        "--batch-size",
        type=int,
        default=None,
        metavar="N",
        help="number of rows per step (default: 32)",
    )
    add(
        "--max-length",
        type=int,
        default=None,
        metavar="N",
        help="maximum number of tokens (default: 128; SQuAD: 384)",
    )
    add(
        "--warmup-ratio",
        type=finite,
        default=0.1,
        metavar="F",
        help="warm-up as a fraction of the steps (default: 0.1)",
    )
    add(
        "--weight-decay",
        type=finite,
        default=0.01,
        metavar="F",
        help="weight decay (default: 0.01)",
    )
    add("--bf16", action="store_true", help="compute in bfloat16")
    add(
        "--batching",
        choices=("length", "random"),
        default="length",
        metavar="HOW",
        help="length = group rows of similar length to reduce padding (default); "
        "random = random order",
    )
    add(
        "--null-threshold",
        type=finite,
        default=0.0,
        metavar="F",
        help='SQuAD 2.0: predict "no answer" if its score exceeds that of the best span by more '
        "than F (default: 0)",
    )
    add(
        "--mnli-first",
        action="store_true",
        help="start rte, mrpc and stsb from a model fine-tuned on MNLI",
    )
    add("--mnli-data", default="", metavar="DIR", help="folder of MNLI, if it is not in --data")
    add(
        "--max-train-rows",
        type=int,
        default=0,
        metavar="N",
        help="train on a random sample of N rows (0 = all)",
    )
    add(
        "--max-dev-rows",
        type=int,
        default=0,
        metavar="N",
        help="score a random sample of N rows (0 = all)",
    )
    add(
        "--max-test-rows",
        type=int,
        default=0,
        metavar="N",
        help="predict labels or answers for a random sample of N rows (0 = all)",
    )
    add("--no-test", action="store_true", help="do not predict test files")
    add("--deepspeed_config", default="", metavar="F.json", help="train with this DeepSpeed JSON")
    add("--no-model", action="store_true", help="save scores and predictions, but no weights")
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    _check_use(args, given_options(parser, args))
    return args


def _check_use(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse options that would be ignored.

    Raises:
        ConfigError: names the option, and the options or tasks that it needs.
    """
    refuse_together(given, "no_test", ("test", "max_test_rows"))
    if args.deepspeed_config and given.intersection(("bf16", "batch_size", "weight_decay")):
        raise ConfigError(
            "--bf16, --batch-size and --weight-decay cannot be combined with --deepspeed_config; "
            "set bf16.enabled, train_batch_size and optimizer.params.weight_decay in "
            f"{args.deepspeed_config}"
        )
    refuse_idle(given, {"mnli_data": ("mnli_first",)})
    for_task = {
        **dict.fromkeys(
            ("text_column", "pair_column", "label_column", "regression"), ("text-classification",)
        ),
        "null_threshold": ("squad_v2",),
    }
    whole_suite = ("train", "dev", "test", "mnli_data") if args.task == "glue" else ()
    for name in given.intersection([*for_task, *whole_suite]):
        if args.task not in for_task.get(name, ()):
            raise ConfigError(f"--{name.replace('_', '-')} cannot be used with --task {args.task}")


def main(argv: list[str] | None = None) -> int:
    """Fine-tune and print the scores."""
    args = parse_args(argv)
    from bertds.config.locate import find_json
    from bertds.distributed.rank_info import find_rank_info
    from bertds.finetune.glue_suite import table
    from bertds.system.logs import start_logging

    if args.deepspeed_config:
        args.deepspeed_config = str(find_json(args.deepspeed_config))
    # Under DeepSpeed's launcher every rank runs this function, but only one prints.
    is_main = not args.deepspeed_config or find_rank_info().is_main
    start_logging(is_main)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    results = _run_suite(args, is_main) if args.task == "glue" else {args.task: _run_one(args)}
    if args.deepspeed_config:
        from bertds.engine.process_group import end_processes

        end_processes()
    if is_main:
        print(table(results))
        model = Path(args.out) / "model"
        where = f"; the model is in {model}" if model.is_dir() else ""
        print(f"wrote {args.out}{where}")
    return EXIT_OK


def _run_suite(args: argparse.Namespace, is_main: bool) -> dict[str, Any]:
    from bertds.finetune.glue_suite import MNLI_FIRST, present_tasks, run_suite

    if not args.data:
        raise ConfigError("--task glue requires --data: the folder with the GLUE folders, or hub")
    names = present_tasks(args.data)
    if args.mnli_first and "mnli" not in names:
        raise ConfigError(f"--mnli-first: no MNLI folder in {args.data}")

    def run_one(name: str, out: Path) -> dict[str, Any]:
        from_mnli = args.mnli_first and name in MNLI_FIRST
        start = str(args.out / "mnli" / "model") if from_mnli else args.model
        return _finetune(args, get_task(name), out, _data(args, name), start, once=True)

    return run_suite(names, args.out, run_one, is_main=is_main)


def _run_one(args: argparse.Namespace) -> dict[str, Any]:
    from bertds.finetune.glue_suite import MNLI_FIRST

    task = get_task(args.task)
    data = _data(args, task.name)
    if not args.data and not args.train:
        raise ConfigError("--data DIR_OR_HUB is required, or --train and --dev files")
    if args.mnli_first:
        if task.name not in MNLI_FIRST:
            raise ConfigError(
                f"--mnli-first can only be used with --task {', '.join(MNLI_FIRST)} or glue, not "
                f"with {task.name}"
            )
        mnli = args.out.with_name(f"{args.out.name}-mnli")
        mnli_data = _data(args, "mnli", data=args.mnli_data or args.data)
        _finetune(args, get_task("mnli"), mnli, mnli_data, args.model, once=True)
        return _finetune(args, task, args.out, data, str(mnli / "model"))
    return _finetune(args, task, args.out, data, args.model)


def _data(args: argparse.Namespace, name: str, data: str | None = None) -> DataOptions:
    from bertds.finetune.task_data import DataOptions

    single = name == args.task
    return DataOptions(
        data=args.data if data is None else data,
        train_file=args.train if single else "",
        dev_file=args.dev if single else "",
        test_file=args.test if single else "",
        text_column=args.text_column,
        pair_column=args.pair_column,
        label_column=args.label_column,
        regression=args.regression,
        max_train_rows=args.max_train_rows,
        max_dev_rows=args.max_dev_rows,
        max_test_rows=args.max_test_rows,
        no_test=args.no_test,
    )


def _finetune(
    args: argparse.Namespace,
    task: Task,
    out: Path,
    data: DataOptions,
    model: str,
    *,
    once: bool = False,
) -> dict[str, Any]:
    """Run one task; with ``once``, a complete run with the same settings is not repeated."""
    from bertds.finetune.loop import TrainSettings
    from bertds.finetune.trials import RunOptions, earlier_results, finetune

    rates = tuple(args.learning_rate or task.learning_rates)
    # A DeepSpeed JSON states one learning rate, which replaces the grid of the task.
    if args.deepspeed_config and not args.learning_rate:
        from bertds.engine.ds_config import load_deepspeed_json

        rates = (load_deepspeed_json(args.deepspeed_config).optimizer.lr,)
    # An option of 0 must be refused below, so only None means the default of the task.
    epochs = args.epochs if args.epochs is not None else task.epochs
    batch_size = args.batch_size if args.batch_size is not None else task.batch_size
    max_length = args.max_length if args.max_length is not None else task.max_length
    for option, value, least in (
        ("epochs", epochs, 0.0),
        ("batch-size", batch_size, 0),
        ("max-length", max_length, 4),
        ("learning-rate", min(rates), 0.0),
    ):
        if value <= least:
            raise ConfigError(f"--{option} {value}: must be above {least:g}")
    for option in ("max_train_rows", "max_dev_rows", "max_test_rows"):
        if getattr(args, option) < 0:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name} {getattr(args, option)}: must be 0 (all rows) or more")
    if args.weight_decay < 0.0:
        raise ConfigError(f"--weight-decay {args.weight_decay:g}: must be 0 or more")
    if not 0.0 <= args.warmup_ratio < 1.0:
        raise ConfigError(f"--warmup-ratio {args.warmup_ratio}: must be at least 0 and less than 1")
    settings = TrainSettings(
        learning_rate=rates[0],
        epochs=epochs,
        batch_size=batch_size,
        warmup_ratio=args.warmup_ratio,
        weight_decay=args.weight_decay,
        precision="bf16" if args.bf16 else "fp32",
        batching=args.batching,
    )
    options = RunOptions(
        model=model,
        out=out,
        settings=settings,
        learning_rates=rates,
        seeds=tuple(dict.fromkeys(args.seeds)),
        max_length=max_length,
        deepspeed=args.deepspeed_config,
        null_threshold=args.null_threshold,
        # The model for MNLI is needed as the start of other tasks.
        overwrite=args.overwrite,
        save_model=not args.no_model or (args.mnli_first and task.name == "mnli"),
    )
    # A suite that was interrupted continues with the first task that is not complete.
    done = earlier_results(data, options) if once and not args.overwrite else None
    if done is not None:
        log.info("%s: already done", out)
        return done
    return finetune(task, data, options)
