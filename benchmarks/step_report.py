"""The output of ``train_step.py``: a table, and the seconds of the parts."""

from __future__ import annotations

from typing import Any

OURS, PEER = "bertds", "transformers"


def rows_per_step(line: dict[str, Any]) -> str:
    """Return how both cut a step, such as "2 x 128 rows (theirs 4 x 64)"."""
    rows, accumulation = line["rows"], line.get("accumulation", 1)
    theirs = line.get("peer_rows", rows)
    words = f"{accumulation} x {rows} rows"
    if theirs != rows:
        words += f" (theirs {rows * accumulation // theirs} x {theirs})"
    return words


def show(line: dict[str, Any]) -> None:
    """Print one line of the table with its parts."""
    print(
        f"\nBERT-{line['model']}, {line['length']} tokens, {line['precision']}, "
        f"{rows_per_step(line)} per step, "
        f"{line['padding']:.1%} padding: {line['speedup']:.2f} x transformers "
        f"(totals {line['speedup_of_totals']:.2f}, CPU seconds "
        f"{line['speedup_of_cpu_seconds']:.2f})"
    )
    if equal := line.get("equality"):
        print(
            f"  losses without dropout: {equal[OURS]} and {equal[PEER]}, "
            f"apart by {equal['largest_relative_difference']:.1e} at most"
        )
    print(f"  {'':14}{'s/step':>9}{'real tok/s':>12}{'padded tok/s':>14}{'MFU':>7}{'GiB':>7}")
    for name in (OURS, PEER):
        row = line[name]
        mfu = f"{row['mfu']:.1%}" if "mfu" in row else "-"
        memory = row.get("peak_memory_gib", "-")
        print(
            f"  {name:14}{row['median_seconds']:9.3f}{row['real_tokens_per_second']:12,.0f}"
            f"{row['padded_tokens_per_second']:14,.0f}{mfu:>7}{memory:>7}"
        )
    if line[OURS]["parts"]:
        show_parts(line)
    if graphs := line.get("graphs_compiled_by_step"):
        print(
            f"  graphs compiled in each step: {' '.join(map(str, graphs))} "
            f"({line['token_counts_seen']} different numbers of tokens)"
        )
    print(f"  loader: {line['loader_cpu_seconds_per_step'] * 1e3:.2f} ms of one core a step")


def show_parts(line: dict[str, Any]) -> None:
    """Print the seconds of each part."""
    print("  parts, s:" + "".join(f"{name:>14}" for name in (OURS, PEER)))
    for part in sorted(set(line[OURS]["parts"]) | set(line[PEER]["parts"])):
        values = (line[name]["parts"].get(part, 0.0) for name in (OURS, PEER))
        print(f"  {part:22}" + "".join(f"{value:14.3f}" for value in values))
