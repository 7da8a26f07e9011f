"""Speed of making training rows on one core, compared with transformers' masked-LM collator.

```text
python benchmarks/loader.py [--data PREPARED_FOLDER] [--seconds 3] [--json FILE]
```

Timed at 128 and at 512 tokens (20 and 80 predictions):

- fresh pairs and masks: documents cut into samples, samples shuffled, rows made and masked.
- fresh masks on stored pairs: samples already made; rows made and masked.
- loader: everything up to the tensors of a training loop that does nothing else, thread included.
- transformers' DataCollatorForLanguageModeling on the same rows, returning torch tensors ("pt")
  or numpy arrays ("np"); it makes no pairs.

All contenders take turns within one process, in several rounds. Rows are counted per second of the
CPU time of all threads of the process. The best round is shown, because other work on a shared
machine can only make a round slower.

A second table shows the share of time that a training loop waits for the loader, by
``data.prefetch_steps``. The loop asks for 2,048 rows of 128 tokens per step and sleeps 50 ms
instead of training.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.common import add_result_options, facts, write_result
from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig
from bertds.config.row_settings import RowSettings
from bertds.data.formats.token_shards import TokenShard
from bertds.data.loader import BatchLoader
from bertds.data.rng import permutation
from bertds.data.samples.flat_rows import RowMaker
from bertds.data.samples.pairing import scan_shard
from bertds.data.sources.base import Source
from bertds.data.sources.open import open_source
from bertds.data.sources.token_source import TokenSource
from bertds.data.vocabulary import TokenizerInfo
from bertds.data.vocabulary_file import SPECIAL_TOKENS

TARGETS = {"fresh pairs and masks": (150_000, 60_000), "fresh masks": (300_000, 100_000)}
BATCH = 256
PREFETCH_STEPS = (1, 2, 4, 8)
PRETENDED_SECONDS = 0.05


def synthetic_source(settings: RowSettings, tokens: int = 20_000_000) -> TokenSource:
    """Return a corpus with the lengths of English Wikipedia (lognormal documents, sentences)."""
    generator = np.random.default_rng(0)
    sentences = np.maximum(1, generator.lognormal(3.1, 0.55, tokens // 20).astype(np.int64))
    documents: list[int] = []
    while sum(documents) < len(sentences):
        documents += np.maximum(1, generator.lognormal(2.9, 1.1, 4096).astype(np.int64)).tolist()
    ends = np.minimum(np.cumsum(documents), len(sentences))
    ends = np.unique(np.concatenate([[0], ends]))
    shard = TokenShard.from_arrays(
        "synthetic",
        generator.integers(999, 30_522, int(sentences.sum())).astype(np.uint16),
        np.concatenate([[0], np.cumsum(sentences)]),
        ends,
    )
    special = dict(zip(SPECIAL_TOKENS, (0, 100, 101, 102, 103), strict=True))
    tokenizer = TokenizerInfo(
        vocab_size=30_522, lower_case=True, fingerprint="", special_ids=special
    )
    return TokenSource("synthetic", "memory", tokenizer, settings, 1, [shard.documents], {0: shard})


def open_data(path: str, length: int, predictions: int) -> tuple[Source, DataConfig]:
    """Open a prepared folder, or make a corpus up."""
    config = DataConfig(
        path=path, sequence_length=length, max_predictions_per_sequence=predictions, verify="size"
    )
    if path:
        return open_source(config, 1), config
    return synthetic_source(config.rows), config


def contenders(
    source: Source, config: DataConfig, micro: int
) -> tuple[dict[str, Callable[[], int]], float]:
    """Return functions that make rows and return how many, and the mean tokens of a row."""
    assert isinstance(source, TokenSource)
    settings, tokenizer = source.settings, source.tokenizer
    shard = source.shard(0)
    maker = RowMaker(settings, tokenizer, 1)
    place = {"shard_number": 0, "seed": 1, "settings": settings}
    pairs = scan_shard(shard, shard, epoch=0, **place)
    order = permutation(1, pairs.size)
    limit = min(pairs.size, 60_000)
    epoch = 0

    def make_all(samples, wanted, number):
        made = 0
        for start in range(0, wanted, BATCH):
            made += maker.make([samples], [0], None, number[start : start + BATCH], epoch).rows
        return made

    def fresh_pairs() -> int:
        # All samples are cut and shuffled; if not all are made into rows, the time of the
        # cutting would count too often, so all are.
        nonlocal epoch
        epoch += 1
        new = scan_shard(shard, shard, epoch=epoch, **place)
        return make_all(new, new.size, permutation(epoch, new.size))

    def fresh_masks() -> int:
        nonlocal epoch
        epoch += 1
        return make_all(pairs, limit, order)

    plan = BatchPlan(global_batch_size=4 * micro, micro_batch_size=micro, world_size=1)
    loader = BatchLoader(source, config, plan, 0, seed=1)

    def through_loader() -> int:
        return sum(len(next(loader).samples) for _ in range(max(1, limit // (4 * micro))))

    # The collator gets rows of our own, unmasked, so that the lengths are the same.
    flat = maker.make([pairs], [0], None, order[: 40 * micro], 0)
    flat.input_ids[flat.masked_positions] = flat.masked_ids
    features = [
        {"input_ids": flat.input_ids[start:stop].tolist()}
        for start, stop in pairwise(flat.row_offsets.tolist())
    ]
    tokens_per_row = len(flat.input_ids) / flat.rows

    def collator(kind: str) -> Callable[[], int]:
        collate = masked_lm_collator(kind)

        def run() -> int:
            for start in range(0, len(features), micro):
                collate(features[start : start + micro])
            return len(features)

        return run

    runs = {
        "fresh pairs and masks": fresh_pairs,
        "fresh masks": fresh_masks,
        "loader": through_loader,
        "transformers collator, pt": collator("pt"),
        "transformers collator, np": collator("np"),
    }
    return runs, tokens_per_row


def masked_lm_collator(kind: str):
    """Return transformers' collator with a tokenizer of 30,522 made-up tokens."""
    import tempfile

    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    tokens = [f"w{n}" for n in range(30_522)]
    for number, token in zip((0, 100, 101, 102, 103), SPECIAL_TOKENS.values(), strict=True):
        tokens[number] = token
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(tokens))
        tokenizer = BertTokenizerFast(str(file))
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, return_tensors=kind)


def measure(runs: dict[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """Return rows per CPU-second, the best of the rounds that fit into ``seconds`` each."""
    best = dict.fromkeys(runs, 0.0)
    for run in runs.values():
        run()  # compile, fill caches
    spent = dict.fromkeys(runs, 0.0)
    while min(spent.values()) < seconds:
        for name, run in runs.items():
            began = time.process_time()
            rows = run()
            used = time.process_time() - began
            spent[name] += used
            best[name] = max(best[name], rows / used)
    return best


def stalls(path: str, depth: int, steps: int) -> float:
    """Return the share of the time that a loop of simulated work waits for the loader."""
    source, config = open_data(path, 128, 20)
    plan = BatchPlan(global_batch_size=2048, micro_batch_size=256, world_size=1)
    deep = replace(config, prefetch_steps=depth)
    with BatchLoader(source, deep, plan, 0, seed=1) as loader:
        next(loader)  # opens the first block
        before, began = loader.stall_seconds, time.perf_counter()
        for _ in range(steps):
            next(loader)
            time.sleep(PRETENDED_SECONDS)
        return (loader.stall_seconds - before) / (time.perf_counter() - began)


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    rates, tokens = result["rows_per_second"], result["tokens_per_row"]
    print(f"{'rows per CPU-second':30}{'128':>12}{'512':>12}   x collator pt   target")
    for name in rates["128"]:
        short, long = rates["128"][name], rates["512"][name]
        peer = [rates[n]["transformers collator, pt"] for n in ("128", "512")]
        target = TARGETS.get(name)
        goal = f"{target[0]:,} / {target[1]:,}" if target else ""
        ratio = f"{short / peer[0]:.1f} / {long / peer[1]:.1f}"
        print(f"{name:30}{short:12,.0f}{long:12,.0f}   {ratio:15} {goal}")
    print(f"{'tokens per row':30}{tokens['128']:12.1f}{tokens['512']:12.1f}")
    print("waiting for the loader, by data.prefetch_steps:", end="")
    print("".join(f"  {n}: {share:.1%}" for n, share in result["stall_share"].items()))
    print(f"{result['data']}; {result['machine']}, load {result['load_average']}")


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Rows per second and core of the data loader.")
    parser.add_argument("--data", default="", help="a prepared folder; default: made-up text")
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU seconds per contender")
    parser.add_argument("--steps", type=int, default=40, help="steps with simulated work")
    add_result_options(parser)
    args = parser.parse_args(argv)
    result = facts("loader.py", argv, args.note)
    result["data"] = args.data or "made-up text, lengths as English Wikipedia"
    result["tokens_per_row"], result["rows_per_second"] = {}, {}
    for length, predictions in ((128, 20), (512, 80)):
        source, config = open_data(args.data, length, predictions)
        runs, tokens = contenders(source, config, micro=64)
        result["tokens_per_row"][str(length)] = round(tokens, 1)
        rates = measure(runs, args.seconds)
        result["rows_per_second"][str(length)] = {name: round(v) for name, v in rates.items()}
    result["stall_share"] = {
        str(depth): round(stalls(args.data, depth, args.steps), 4) for depth in PREFETCH_STEPS
    }
    show(result)
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
