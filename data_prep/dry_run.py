"""``--dry-run``: how much work, disk and time to expect. Writes nothing below ``--out``.

A sample of each source, spread over its files, is prepared in a temporary folder with all options.
Its results and its time are then scaled up. Duplicates and near-duplicates are found only in the
whole corpus, so the counts are upper limits.
"""

from __future__ import annotations

import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bertds.data.formats.manifest import Manifest
from bertds.display import words
from bertds.errors import DataError
from bertds.system.atomic_files import free_bytes
from data_prep import progress
from data_prep.document import SourceFile, Unit
from data_prep.settings import PrepSettings
from data_prep.sources import blocks, file_units, is_read_by_one
from data_prep.stages.part_files import open_part
from data_prep.workers.pool import Workers
from data_prep.workers.team import Group, SingleProcess

SAMPLE_BYTES = 8 << 20
LEAST_OF_A_SOURCE = 1 << 20
_UNIT_BYTES = 256 << 10
LARGEST_UNIT = 4 << 20
_RECORD_ENDS = dict.fromkeys(["text", "jsonl", "extracted-json"], b"\n") | {"extracted": b"</doc>"}
_FILES_OPENED = 64
"""Per source, because books and extracted articles are many small files."""


class Forecast(NamedTuple):
    """The expected results of a whole preparation."""

    documents: dict[str, int]
    """Documents read, by source."""
    dropped: dict[str, int]
    tokens: dict[str, int]
    shards: int
    rows: dict[int, int]
    """Number of rows, by sequence length."""
    shard_bytes: int
    row_bytes: int
    work_bytes: int
    """Temporary space in OUT/.work."""
    seconds: float
    """With one worker."""
    one_reader_seconds: float
    """The time of a single process to read dumps that are one compressed stream."""


class _Stopwatch(SingleProcess):
    """Runs the tasks in this process, and measures the time of each."""

    def __init__(self) -> None:
        super().__init__(Workers(1))
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.contents: Counter[str] = Counter()
        """By source: number of tokens, or bytes of text if there is no vocabulary yet."""

    def each(
        self,
        stage: str,
        function: Callable[[Any], dict[str, Any]],
        groups: Iterable[Group],
        done: Callable[[dict[str, Any]], None],
    ) -> None:
        """Run every task; the first one twice, because it compiles the kernels."""
        first = True
        for group in groups:
            for task in group.tasks():
                if first:
                    function(task)
                    first = False
                began = time.perf_counter()
                result = function(task)
                unit = getattr(task, "unit", None)
                name = f"source {unit.source}" if unit is not None else stage
                self.seconds[name] += time.perf_counter() - began
                if unit is not None:
                    self.contents[unit.source] += len(open_part(task.part).payload)
                done(result)


def beginning(unit: Unit, folder: Path) -> Unit:
    """Return a unit for the beginning of a large compressed file that is a single unit.

    Raises:
        DataError: the file is damaged in this part.
    """
    data = b""
    for block, _ in blocks.whole_blocks(unit.path):
        data += block
        if len(data) >= LARGEST_UNIT:
            break
    else:
        return unit
    # End with a whole record.
    data = data[: data.rindex(_RECORD_ENDS[unit.reader]) + len(_RECORD_ENDS[unit.reader])]
    path = folder / f"{unit.source}-{unit.path.name}.beginning"
    path.write_bytes(data)
    # The compressed size of this part is not known: any compressor estimates it well enough.
    size = min(unit.size, len(zlib.compress(data)))
    return unit._replace(file=str(path), start=0, end=len(data), size=size)


def sample_units(
    files: Sequence[SourceFile], folder: Path
) -> tuple[dict[str, list[Unit]], dict[str, float]]:
    """Choose units of each source, spread evenly over its files and within them.

    Args:
        files: the sources.
        folder: for copies of the beginnings of files that cannot be read in parts.

    Returns:
        The units by source, and the seconds that a single process needed to read some of them.
    """
    reading: dict[str, float] = {}
    total = max(1, sum(file.bytes for file in files))
    chosen: dict[str, list[Unit]] = {}
    for source in dict.fromkeys(file.source for file in files):
        # Large sources get a larger sample, but small ones at least LEAST_OF_A_SOURCE.
        own = [file for file in files if file.source == source]
        share = sum(file.bytes for file in own) / total
        wanted = max(LEAST_OF_A_SOURCE, round(share * SAMPLE_BYTES))
        opened = own[:: max(1, -(-len(own) // _FILES_OPENED))]
        units: list[Unit] = []
        for file in opened:
            number = max(1, round(wanted / len(opened) / _UNIT_BYTES))
            if is_read_by_one(file):
                # Only its beginning: reaching the middle would mean reading half of it.
                began = time.perf_counter()
                units += islice(file_units(file, _UNIT_BYTES), max(2, number))
                reading[source] = reading.get(source, 0.0) + time.perf_counter() - began
            else:
                there = list(file_units(file, _UNIT_BYTES))
                there = there[:: max(1, -(-len(there) // number))]
                if file.reader in _RECORD_ENDS and there[0].size > LARGEST_UNIT:
                    there = [beginning(there[0], folder)]
                units += there
            if sum(unit.size for unit in units) >= 2 * wanted:
                break
        chosen[source] = units
    return chosen, reading


Run = Callable[[Path, PrepSettings, SingleProcess, list[Unit]], Manifest]


def forecast(files: Sequence[SourceFile], settings: PrepSettings, run: Run) -> Forecast:
    """Prepare a sample and scale it up.

    Args:
        files: the sources.
        settings: of the whole preparation.
        run: prepares units in a folder, with a team.

    Raises:
        BertdsError: the same errors as in the preparation.
    """
    with tempfile.TemporaryDirectory(prefix="bertds-dry-run-") as folder:
        return _forecast(files, settings, run, Path(folder))


def _forecast(
    files: Sequence[SourceFile], settings: PrepSettings, run: Run, folder: Path
) -> Forecast:
    units, reading = sample_units(files, folder)
    # The factor of each source: its bytes divided by those of the sample.
    whole = {s: sum(f.bytes for f in files if f.source == s) for s in units}
    read = {s: max(1, sum(u.size for u in chosen)) for s, chosen in units.items()}
    scale = {s: max(1.0, whole[s] / read[s]) for s in units}
    watch = _Stopwatch()
    # One pass without held-out documents: the other passes cost the same.
    small = replace(settings, validation_fraction=0.0, dupe_factor=1)
    (folder / "out").mkdir()
    try:
        chosen_units = [unit for chosen in units.values() for unit in chosen]
        with progress.silence():
            manifest = run(folder / "out", small, watch, chosen_units)
    except DataError as error:
        raise DataError(f"in a sample of the sources: {error}") from error
    # Documents and reasons for dropping, scaled by source.
    documents: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    for source in manifest.sources:
        factor = scale.get(source["name"], 1.0)
        documents[source["name"]] = round(source["documents_read"] * factor)
        for reason, count in source["dropped"].items():
            dropped[reason] += round(count * factor)
    train = manifest.splits["train"]
    # A document's source is not known after stage 1, so the sample's tokens are divided in
    # proportion to stage 1.
    contents = max(1, watch.contents.total())
    tokens = {
        s: round(train.tokens * watch.contents[s] / contents * factor)
        for s, factor in scale.items()
    }
    # The work after stage 1 grows with the number of tokens, whatever their source.
    overall = sum(tokens.values()) / max(1, train.tokens)
    passes = settings.dupe_factor
    rows = {
        one["sequence_length"]: round(sum(f["rows"] for f in one["files"]) * overall * passes)
        for one in manifest.instances
    }
    row_bytes = sum(f["bytes"] for one in manifest.instances for f in one["files"])
    shard_bytes = round(sum(shard.bytes for shard in train.shards) * overall)
    # Stage 1 scales with the bytes of its source, all other stages with the tokens.
    seconds = 0.0
    for name, spent in watch.seconds.items():
        source_name = name.removeprefix("source ")
        if name != source_name:
            seconds += spent * scale[source_name]
        else:
            seconds += spent * overall * (passes if name == "rows" else 1)
    return Forecast(
        documents=documents,
        dropped=dict(dropped),
        tokens=tokens,
        shards=max(1, -(-sum(tokens.values()) // settings.shard_tokens)),
        rows=rows,
        shard_bytes=shard_bytes,
        row_bytes=round(row_bytes * overall * passes),
        # Parts have the same arrays as shards; to train a vocabulary, the text is stored as well.
        work_bytes=round(shard_bytes * (3.5 if settings.vocab_size else 1.0)),
        seconds=seconds,
        one_reader_seconds=sum(spent * scale[s] for s, spent in reading.items()),
    )


def tell(
    found: Forecast,
    files: Sequence[SourceFile],
    settings: PrepSettings,
    out: Path,
    workers: int,
    tasks: int,
) -> None:
    """Print the forecast."""
    # One line per source, then totals.
    rows: dict[str, str] = {}
    for source, documents in found.documents.items():
        own = [file for file in files if file.source == source]
        rows[source] = (
            f"{words.count(len(own), 'file')}, {sum(f.bytes for f in own) / 1e6:,.1f} MB: "
            f"about {documents:,} documents, {found.tokens[source]:,} tokens"
        )
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(found.dropped.items()))
    rows["dropped"] = reasons or "none found in the sample"
    rows["shards"] = f"about {found.shards:,} of {settings.shard_tokens:,} tokens"
    for length, count in found.rows.items():
        passes = words.count(settings.dupe_factor, "pass", "passes")
        rows[f"rows {length}"] = f"about {count:,} in {passes}"
    # --out may not exist yet: its nearest existing parent is on the same disk.
    there = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    free, needed = free_bytes(there), found.shard_bytes + found.row_bytes + found.work_bytes
    rows["disk"] = (
        f"{in_bytes(found.shard_bytes + found.row_bytes)}, plus {in_bytes(found.work_bytes)} in "
        f"{out}/.work while it runs; {in_bytes(free)} free"
    )
    seconds = max(found.seconds / (workers * tasks), found.one_reader_seconds)
    processes = words.count(workers, "worker")
    split = f"{tasks} tasks of {processes}" if tasks > 1 else processes
    rows["time"] = f"about {words.in_words(max(1.0, seconds))} with {split}"
    if workers * tasks > 1:
        rows["time"] += f", {words.in_words(max(1.0, found.seconds))} with 1 worker"
    progress.say(f"estimate from a sample (nothing was written to {out}):")
    progress.summary(rows)
    if needed > free:
        progress.say(
            f"bertds: warning: {out}: not enough disk space: about {in_bytes(needed)} are "
            f"needed, {in_bytes(free)} are free"
        )


def in_bytes(number: float) -> str:
    """Return ``3.1 GB``."""
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number / 1e3:.3g} kB"
