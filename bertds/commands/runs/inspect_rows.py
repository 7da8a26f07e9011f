"""``bertds inspect RUN --step K`` or ``--sample E:N``: print rows as the model saw them.

Rows are rebuilt from the data with the run's own settings. They are pure functions of seed, epoch
and sample number, so that nothing had to be saved.
"""

from __future__ import annotations

import argparse
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bertds.checkpoint.find import step_folders
from bertds.checkpoint.manifest import read_manifest
from bertds.config.batch_plan import BatchPlan
from bertds.config.load import load_config, read_yaml
from bertds.config.ramps import BatchRamp, MaskRate
from bertds.config.recipe import Config
from bertds.data.batches import MicroBatch, cut
from bertds.data.loader import BatchLoader, DataPosition, open_source
from bertds.data.order import EpochOrder, advance
from bertds.data.sources.base import Source
from bertds.data.sources.open import check_recorded_path
from bertds.errors import EXIT_OK, CheckpointError, ConfigError, DataError
from bertds.system.arguments import CommandParser
from bertds.system.json_fields import parse_json
from data_prep.report.show_rows import Row, print_row


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds inspect",
        description="Print the rows of a step, or single samples, with segments, label and "
        "masks. A masked position shows what the model saw and, in braces, what it "
        "should predict.",
    )
    parser.add_argument("run", help="the run folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", type=int, metavar="K", help="all rows of step K (from 1)")
    which.add_argument(
        "--sample",
        nargs="+",
        metavar="E:N",
        help="samples as epoch:number, the form in which messages name them",
    )
    parser.add_argument("--data", metavar="PATH", help="path of the data, if it has moved")
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="print at most N rows (default: all)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print rows."""
    args = parse_args(argv)
    if args.limit < 0:
        raise ConfigError(f"--limit {args.limit}: must be 0 (all) or more")
    run = Path(args.run)
    config, batch_size = read_run(run, args.data)
    if not args.data:
        check_recorded_path(config.data.path)
    source = open_source(config.data, config.run.seed, split="train")
    if args.sample:
        names = np.array([_parse(name) for name in args.sample], dtype=np.int64)
        rows: Iterator[MicroBatch] = (
            sample(source, epoch, number, rate_of(run, config, source, batch_size, epoch, number))
            for epoch, number in names.tolist()
        )
    else:
        names, whole = step(run, config, source, batch_size, args.step)
        rows = iter(whole)
    from rich.console import Console

    console = Console(highlight=False)
    words = source.tokenizer.pieces()
    for number, (name, row) in enumerate(zip(names.tolist(), rows)):
        if args.limit and number == args.limit:
            print(f"... and {len(names) - args.limit} more")
            break
        title = f"sample {name[0]}:{name[1]}"
        print_row(console, title, row_of(row), words, config.data.pairs)
    return EXIT_OK


def read_run(run: Path, data: str | None) -> tuple[Config, int]:
    """Return a run's settings and its global batch size.

    Raises:
        CheckpointError: the path is not a run folder.
    """
    for name in ("config.yaml", "deepspeed.json"):
        if not (run / name).is_file():
            raise CheckpointError(f"{run}: not a run folder (it has no {name})")
    config = load_config(read_yaml(run / "config.yaml"), {"data.path": data} if data else {})
    settings = parse_json((run / "deepspeed.json").read_text(encoding="utf-8"))
    return config, int(settings["train_batch_size"])


def step(
    run: Path, config: Config, source: Source, batch_size: int, number: int
) -> tuple[np.ndarray, list[MicroBatch]]:
    """Return the names, int64 [B, 2], and the rows of one step; each micro batch is one row."""
    if number < 1:
        raise ConfigError(f"--step {number}: the first step is 1")
    # Counted from the last checkpoint before the step, since the batch size may have changed.
    position, done = next(known for known in known_positions(run) if known[1] < number)
    plan = BatchPlan(global_batch_size=batch_size, micro_batch_size=1, world_size=1)
    # The batch and the masking rate of each step, as in training.
    ramp = BatchRamp.of(config.schedule, plan)
    start = advance(source, position, ramp.samples(number - 1) - ramp.samples(done))
    with BatchLoader(
        source,
        replace(config.data, pack_tokens=0),  # padding to a constant shape is not part of a row
        plan,
        0,
        start=start,
        seed=config.run.seed,
        ramp=ramp,
        mask_rate=MaskRate.of(config.data, config.schedule.total_steps),
        first_step=number - 1,
    ) as loader:
        batch = next(loader)
    return batch.samples, batch.micro_batches


def known_positions(run: Path) -> Iterator[tuple[DataPosition, int]]:
    """Yield positions in the data with the number of steps done there, the newest first."""
    for folder in step_folders(run / "checkpoints"):
        state = read_manifest(folder)["state"]
        yield DataPosition(state["epoch"], state["offset"]), state["step"]
    yield DataPosition(), 0


def rate_of(
    run: Path, config: Config, source: Source, batch_size: int, epoch: int, number: int
) -> float | None:
    """Return the masking rate of the step that uses a sample; None if the rate is constant."""
    rate = MaskRate.of(config.data, config.schedule.total_steps)
    if rate is None:
        return None
    shard, row = locate(source, epoch, number)
    offset = EpochOrder(source, config.run.seed, epoch).offset_of(shard, row)
    # The number of samples since a known position decides the step.
    position, done = next(
        known
        for known in known_positions(run)
        if (known[0].epoch, known[0].offset) <= (epoch, offset)
    )
    between = sum(source.samples_in_epoch(whole) for whole in range(position.epoch, epoch))
    plan = BatchPlan(global_batch_size=batch_size, micro_batch_size=1, world_size=1)
    ramp = BatchRamp.of(config.schedule, plan)
    used = ramp.samples(done) + between + offset - position.offset
    # Every step has at least one sample.
    return rate.at(bisect_right(range(used + 1), used, key=ramp.samples) - 1)


def locate(source: Source, epoch: int, number: int) -> tuple[int, int]:
    """Return the shard of a sample, and its row in it.

    Raises:
        DataError: the epoch has fewer samples.
    """
    firsts = source.first_samples(epoch)
    if not 0 <= number < firsts[-1]:
        raise DataError(
            f"sample {epoch}:{number}: epoch {epoch} has {firsts[-1]} samples, numbered from 0"
        )
    shard = int(np.searchsorted(firsts, number, side="right")) - 1
    return shard, int(number - firsts[shard])


def sample(source: Source, epoch: int, number: int, mask_rate: float | None = None) -> MicroBatch:
    """Return the row of one sample.

    Raises:
        DataError: the epoch has fewer samples.
    """
    shard, row = locate(source, epoch, number)
    flat = source.open_block(epoch, [shard]).gather(np.array([row]), mask_rate)
    return cut(flat, 1, source.sequence_length)[0]


def row_of(batch: MicroBatch) -> Row:
    """Return a micro batch of one row in the form in which rows are printed."""
    masks = zip(batch.masked_lm_positions.tolist(), batch.masked_lm_ids.tolist())
    labels = batch.next_sentence_labels
    return Row(
        batch.input_ids.tolist(),
        batch.segment_ids.tolist(),
        dict(masks),
        None if labels is None else int(labels[0]),
    )


def _parse(name: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", name)
    if not match:
        raise ConfigError(f"--sample {name}: must be epoch:number, such as 0:1234")
    return int(match[1]), int(match[2])
