"""``bertds prep show OUT``: print rows in a readable form.

```text
OUT with manifest.json        token shards: rows made as in training
hdf5_... folder, .hdf5 file   rows stored in NVIDIA's files
```
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bertds.config.row_settings import RowSettings
from bertds.data.formats.hdf5_files import open_hdf5
from bertds.data.formats.manifest import MANIFEST_NAME, Manifest
from bertds.data.formats.nvidia_hdf5 import find_instance_files, header_and_datasets, read_header
from bertds.data.formats.token_shards import TokenShard
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import EXIT_OK, ConfigError, DataError
from bertds.system.arguments import CommandParser
from bertds.system.secrets import masked
from bertds.system.storage import is_url
from data_prep.report.statistics import USUAL_ROWS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LABELS = {"nsp": ("the next segment", "a random segment"), "sop": ("in order", "swapped")}
_FRAME = ("[CLS]", "[SEP]", "<s>", "</s>")


class Row(NamedTuple):
    """One row without its padding."""

    ids: list[int]
    segments: list[int]
    masked: dict[int, int]
    """Position -> id of the original token."""
    label: int | None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds prep show",
        description="Print rows of prepared data with segments, pair label and masks. A masked "
        "position shows what the model sees and, in braces, what it should predict.",
    )
    parser.add_argument(
        "path", metavar="OUT", help="a prepared folder, or an NVIDIA HDF5 file or folder"
    )
    parser.add_argument(
        "--split",
        choices=("train", "validation"),
        help="split to read (default: validation, or train if that is empty)",
    )
    parser.add_argument(
        "-n", "--rows", type=int, default=3, metavar="N", help="number of rows (default: 3)"
    )
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="number of rows to skip (default: 0)"
    )
    parser.add_argument(
        "--sequence-length",
        type=int,
        default=0,
        metavar="S",
        help="length of rows from token shards (default: as --instances, or 128)",
    )
    parser.add_argument(
        "--vocab",
        metavar="FILE",
        help="vocabulary, for HDF5 folders without OUT/tokenizer above them",
    )
    parser.add_argument("--no-colour", action="store_true", help="print plain text")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print rows. Returns 0."""
    args = parse_args(argv)
    if args.rows < 1 or args.first < 0:
        raise ConfigError(
            f"-n {args.rows} --first {args.first}: -n must be at least 1 and --first at least 0"
        )
    if is_url(args.path):
        raise DataError(
            f"{masked(args.path)}: prep show reads only local paths; copy the data to this "
            "machine first"
        )
    path = Path(args.path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    # A prepared folder has its tokenizer; instance files alone need a vocabulary.
    if (path / MANIFEST_NAME).is_file():
        manifest = Manifest.load(path)
        words = load_tokenizer_info(path / "tokenizer", *manifest.tokenizer.rules).pieces()
        pairs = str(manifest.settings.get("pairs", "nsp"))
        split = args.split or ("validation" if manifest.splits["validation"].shards else "train")
        rows = shard_rows(path, manifest, split, args.first, args.rows, args.sequence_length)
    else:
        words, pairs = _vocabulary_beside(path, args.vocab)
        split = args.split or "validation"
        rows = file_rows(path, split, args.first, args.rows, len(words))
    from rich.console import Console

    console = Console(highlight=False, no_color=args.no_colour)
    number = args.first
    for number, row in enumerate(rows, args.first):
        print_row(console, f"row {number}", row, words, pairs)
    # The last row that was printed has the number `number`.
    if number + 1 < args.first + args.rows:
        said = f"{path}: the {split} split has no more rows"
        console.print(said, style="dim", soft_wrap=True)
    return EXIT_OK


def shard_rows(
    out: Path, manifest: Manifest, split: str, first: int, count: int, sequence_length: int
) -> Iterator[Row]:
    """Make rows from token shards, as training does in one pass over the split.

    Raises:
        DataError: the split has no documents.
        ConfigError: the length is impossible.
    """
    # Imported here, because it loads a compiler, which takes a second.
    from bertds.data.samples.flat_rows import build_instances

    infos = manifest.splits[split].shards
    if not infos:
        raise DataError(f"{out}: the {split} split is empty")
    settings = manifest.settings
    asked = settings.get("instances") or [USUAL_ROWS]
    length = sequence_length or asked[0]["sequence_length"]
    predictions = {one["sequence_length"]: one["max_predictions"] for one in asked}
    row_settings = RowSettings.from_mapping(
        settings,
        sequence_length=length,
        # 16% of the row, slightly more than the usual share of masked tokens.
        max_predictions=predictions.get(length, max(1, round(0.16 * length))),
    )
    shards = [TokenShard.open(out / info.file, info, verify="size") for info in infos]
    # Rows come in chunks; those before `first` are skipped across chunks.
    skip = first
    for columns in build_instances(
        shards, 0, row_settings, settings.get("seed", 0), tokenizer=manifest.tokenizer
    ):
        rows = len(columns["input_ids"])
        for number in range(skip, min(rows, skip + count)):
            yield _row(columns, number)
            count -= 1
        skip = max(0, skip - rows)
        if count == 0:
            return


def file_rows(path: Path, split: str, first: int, count: int, vocab_size: int) -> Iterator[Row]:
    """Read rows from NVIDIA's files.

    Raises:
        DataError: there is no such file, or an id is not in the vocabulary.
    """
    for file_path in find_instance_files(path, split):
        rows = read_header(file_path).rows
        if first >= rows:
            first -= rows
            continue
        end = min(rows, first + count)
        with open_hdf5(file_path) as file:
            _, datasets = header_and_datasets(file_path, file)
            columns = {name: found[first:end] for name, found in datasets.items()}
        # A wrong vocabulary would otherwise show the wrong words, or fail with an IndexError.
        largest = int(columns["input_ids"].max())
        if largest >= vocab_size:
            raise DataError(
                f"{file_path}: contains token {largest}, but the vocabulary has {vocab_size} "
                "tokens; give the vocabulary that the file was made with as --vocab FILE"
            )
        for number in range(end - first):
            yield _row(columns, number)
        count -= end - first
        first = 0
        if count == 0:
            return


def _row(columns: dict[str, np.ndarray], number: int) -> Row:
    length = int(columns["input_mask"][number].sum())
    positions = columns["masked_lm_positions"][number]
    masked = dict(zip(positions.tolist(), columns["masked_lm_ids"][number].tolist()))
    masked.pop(0, None)  # unused mask slots hold position 0, which is [CLS]
    labels = columns.get("next_sentence_labels")
    return Row(
        columns["input_ids"][number][:length].tolist(),
        columns["segment_ids"][number][:length].tolist(),
        masked,
        None if labels is None else int(labels[number]),
    )


def _vocabulary_beside(path: Path, given: str | None) -> tuple[list[str], str]:
    """Return the tokens and the kind of pairs, from the prepared folder above a folder of rows."""
    if given:
        return load_tokenizer_info(given).pieces(), "nsp"
    for folder in path.resolve().parents:
        if (folder / MANIFEST_NAME).is_file() and (folder / "tokenizer").is_dir():
            settings = Manifest.load(folder).settings
            tokenizer = load_tokenizer_info(folder / "tokenizer")
            return tokenizer.pieces(), str(settings.get("pairs", "nsp"))
    raise ConfigError(f"{path}: no manifest.json here or in a prepared folder above; give --vocab")


def print_row(console: Console, title: str, row: Row, words: list[str], pairs: str) -> None:
    """Print one row. Lines are wrapped only on a terminal."""
    console.print(describe(title, row, words, pairs), soft_wrap=not console.is_terminal)


def describe(title: str, row: Row, words: list[str], pairs: str) -> Text:
    """Return one row as coloured text: [MASK]{hidden token}, with the pieces of words joined."""
    from rich.text import Text

    text = Text()
    text.append(title, style="bold")
    text.append(f"  {len(row.ids)} tokens, {len(row.masked)} masked")
    if row.label is not None and pairs in LABELS:
        text.append(f", next_sentence_label {row.label}: ")
        text.append(LABELS[pairs][row.label], style="green" if row.label == 0 else "yellow")
    # Rows without pairs have only segment A.
    names = ("A", "B") if any(row.segments) else ("A",)
    for segment, name in enumerate(names):
        text.append(f"\n  {name}  ", style="bold cyan" if segment else "bold blue")
        style = "cyan" if segment else ""
        at_start = True
        for position, token in enumerate(row.ids):
            word = words[token]
            if row.segments[position] != segment:
                continue
            # A masked piece keeps its "##", since the shown token may not be its true one.
            is_piece = word.startswith("##") and position not in row.masked
            if not at_start and not is_piece:
                text.append(" ")
            at_start = False
            if position in row.masked:
                text.append(word, style="bold red")
                text.append("{" + words[row.masked[position]] + "}", style="green")
            elif word in _FRAME:
                text.append(word, style="dim")
            else:
                text.append(word[2:] if is_piece else word, style=style)
    return text
