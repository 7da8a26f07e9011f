"""``OUT/report.html``: one page that shows what was prepared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from bertds.data.formats.manifest import Manifest
from bertds.display import bar_charts, html_page, words
from bertds.display.html_page import Table
from bertds.errors import short_reason
from bertds.system.atomic_files import write_text
from data_prep.earlier_run import REPORT_NAME
from data_prep.progress import say
from data_prep.report.bins import linear_bins, octave_bins
from data_prep.report.counts import drops_in_words, tokenizer_words
from data_prep.report.statistics import Lengths, Rows, read_lengths, read_rows


def offer_report(out: Path, manifest: Manifest) -> None:
    """Write the page; an error in it is reported but does not fail the preparation.

    Raises:
        OSError: the disk is full or cannot be written, which would also prevent the manifest.
    """
    try:
        write_report(out, manifest)
    except OSError:
        raise
    except Exception as error:  # of any kind: the corpus is complete without the page
        say(
            f"{out}: prepared, but {REPORT_NAME} could not be written: {type(error).__name__}: "
            f"{short_reason(error)}"
        )


def write_report(out: Path, manifest: Manifest) -> None:
    """Write the page; the same folder always gives the same bytes."""
    lengths = read_lengths(out, manifest)
    rows = read_rows(out, manifest)
    train = manifest.splits["train"]
    tokens = sum(split.tokens for split in manifest.splits.values())
    casing = tokenizer_words(manifest.tokenizer)
    subtitle = (
        f"{words.short(tokens)} tokens of a vocabulary of {manifest.tokenizer.vocab_size:,}, "
        f"{casing}; seed {manifest.settings['seed']}"
    )
    page = html_page.render(
        "preparation.html.j2",
        title=f"Prepared data: {manifest.settings['dataset']}",
        subtitle=subtitle,
        headline=_headline(manifest, lengths, rows),
        charts=draw_charts(manifest, lengths, rows),
        lengths_note=f"Lengths were measured on {lengths.shards} of "
        f"{words.count(len(train.shards), 'training shard')}; documents are in "
        "random order.",
        sources=_sources(manifest),
        files=_files(manifest),
        settings=_settings(manifest),
    )
    write_text(out / REPORT_NAME, page)


def _headline(manifest: Manifest, lengths: Lengths, rows: list[Rows]) -> list[tuple[str, str]]:
    documents = manifest.documents
    splits = manifest.splits.values()
    values = [
        (words.short(documents["written"]), "documents"),
        (words.short(sum(s.sentences for s in splits)), "sentences"),
        (words.short(sum(s.tokens for s in splits)), "tokens"),
        (f"{1 - documents['written'] / max(1, documents['read']):.1%}", "dropped"),
        (f"{lengths.unknown:.2%}", "tokens are [UNK]"),
    ]
    for one in rows[:2]:
        fill = float(one.tokens.mean()) / one.sequence_length
        values.append((f"{fill:.1%}", f"of a row of {one.sequence_length} filled on average"))
    return values


def draw_charts(
    manifest: Manifest, lengths: Lengths, rows: list[Rows]
) -> list[bar_charts.BarChart]:
    """Return the charts of the page, in their order."""
    found = [
        bar_charts.histogram(title, *octave_bins(values), note=_quantiles(values))
        for title, values in (
            ("Tokens per document", lengths.tokens_per_document),
            ("Sentences per document", lengths.sentences_per_document),
        )
    ]
    values = lengths.tokens_per_sentence
    # A few very long sentences must not stretch the axis until the others share one bar.
    end = min(200, max(20, 20 * math.ceil(float(np.percentile(values, 99.5)) / 20)))
    width = end // 20
    counts, middle = linear_bins(values, width, end)
    ticks = [(n / width, f"{n}" if n < end else f"{n} +") for n in range(0, end + 1, 4 * width)]
    note = _quantiles(values)
    found.append(bar_charts.histogram("Tokens per sentence", counts, ticks, middle, note=note))
    found += [_fill_chart(one) for one in rows]
    # Charts about rows: fill, masks and pair labels for each sequence length.
    if rows:
        found.append(bar_charts.shares("Masked tokens", _mask_shares(rows), note=_mask_note(rows)))
    labels = [(str(one.sequence_length), one.label) for one in rows if one.label is not None]
    if labels:
        found.append(_label_chart(labels, sop=manifest.settings.get("pairs") == "sop"))
    return [*found, *_count_charts(manifest)]


def _fill_chart(one: Rows) -> bar_charts.BarChart:
    length = one.sequence_length
    width = max(1, length // 32)
    counts, middle = linear_bins(one.tokens, width, length)
    ticks = [(n / width, f"{n}") for n in range(0, length + 1, length // 4)]
    fill = float(one.tokens.mean()) / length
    note = (
        f"Rows are filled to {fill:.1%} on average; {np.mean(one.tokens >= length):.1%} of them "
        f"are full. {one.rows:,} rows."
    )
    return bar_charts.histogram(f"Tokens per row of {length}", counts, ticks, middle, note=note)


def _label_chart(labels: list[tuple[str, float]], *, sop: bool) -> bar_charts.BarChart:
    names = ("in order", "swapped") if sop else ("next", "random")
    note = "Label 0 and label 1."
    if not sop:
        note += " The last segment of a document has no next segment, so more than 50% are random."
    return bar_charts.shares(
        "Sentence order" if sop else "Next sentence",
        [(length, ((names[0], 1 - share), (names[1], share))) for length, share in labels],
        note=note,
    )


def _count_charts(manifest: Manifest) -> list[bar_charts.BarChart]:
    dropped = sorted(manifest.documents["dropped"].items(), key=lambda pair: (-pair[1], pair[0]))
    read = max(1, manifest.documents["read"])
    written = manifest.documents["written"]
    sources = [(s["name"], s["documents_written"]) for s in manifest.sources]
    sources.sort(key=lambda pair: (-pair[1], pair[0]))

    def bars(counts: list[tuple[str, int]], total: int) -> list[tuple[str, float, str]]:
        return [(name, float(n), f"{n:,}  ({n / max(1, total):.1%})") for name, n in counts]

    return [
        bar_charts.bars(
            "Documents written and dropped",
            bars([("written", written), *dropped], read),
            note=f"{read:,} documents read.",
        ),
        bar_charts.bars("Top sources", bars(sources[:10], written), note="Documents written."),
    ]


def _mask_shares(rows: list[Rows]) -> list[tuple[str, tuple[tuple[str, float], ...]]]:
    return [
        (
            str(one.sequence_length),
            (
                ("[MASK]", one.mask_token),
                ("unchanged", one.kept_token),
                ("random token", one.random_token),
            ),
        )
        for one in rows
    ]


def _mask_note(rows: list[Rows]) -> str:
    told = [
        f"{float(one.masked.sum()) / float(one.tokens.sum()):.1%} of the tokens, "
        f"{float(one.masked.mean()):.1f} per row (at most {one.max_predictions}) at "
        f"{one.sequence_length}"
        for one in rows
    ]
    return "What masked positions contain. Masked: " + "; ".join(told) + "."


def _quantiles(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return (
        f"Mean {values.mean():,.1f}, median {middle:,.0f}; 90% between {low:,.0f} and "
        f"{high:,.0f}; longest {values.max():,}."
    )


def _sources(manifest: Manifest) -> Table:
    rows: list[list[Any]] = []
    for source in manifest.sources:
        dropped = drops_in_words(source["dropped"])
        rows.append(
            [
                source["name"],
                source["licence"],
                f"{len(source['files']):,}",
                f"{sum(f['bytes'] for f in source['files']) / 1e6:,.1f}",
                f"{source['documents_read']:,}",
                f"{source['documents_written']:,}",
                dropped or "none",
            ]
        )
    head = ["source", "licence", "files", "MB", "read", "written", "dropped"]
    return Table(head, rows, numbers=(2, 3, 4, 5))


def _files(manifest: Manifest) -> Table:
    rows: list[list[Any]] = []
    for name, split in manifest.splits.items():
        rows.append(
            [
                f"{name}/",
                f"{len(split.shards):,}",
                f"{sum(shard.bytes for shard in split.shards) / 1e6:,.1f}",
                f"{split.documents:,} documents, {split.sentences:,} sentences, "
                f"{split.tokens:,} tokens",
            ]
        )
    for instance in manifest.instances:
        count = sum(file["rows"] for file in instance["files"])
        rows.append(
            [
                f"NVIDIA HDF5, {instance['sequence_length']} tokens, {instance['max_predictions']} "
                f"masks, {words.count(instance['dupe_factor'], 'pass', 'passes')}",
                f"{len(instance['files']):,}",
                f"{sum(file['bytes'] for file in instance['files']) / 1e6:,.1f}",
                f"{count:,} rows",
            ]
        )
    return Table(["what", "files", "MB", "contents"], rows, numbers=(1, 2))


def _settings(manifest: Manifest) -> Table:
    rows = [
        [key, value if isinstance(value, str | int | float) else json.dumps(value)]
        for key, value in manifest.settings.items()
    ]
    return Table(["setting", ""], rows)
